"""AdamATan2, the learning-rate schedule, and the moving average of the weights."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hrm_dist.distributed import collectives

# Added to sqrt(v), where it changes nothing but 0/0 (a gradient that never was anything but zero) into 0.
_TINY = torch.finfo(torch.float32).tiny
# The square of a number from here on is infinite.
_LARGEST = math.sqrt(torch.finfo(torch.float32).max)
# Updated at a time: an update needs two more numbers for each.
_MAX_ELEMENTS = 2**25


class AdamATan2(torch.optim.Optimizer):
    """Adam with the update atan2(m, sqrt(v)) in place of m / (sqrt(v) + eps) (arXiv 2407.05872).

    No epsilon. Weight decay is decoupled and comes first. As in the optimizer HRM was trained with, there is
    no factor of 1.27, and the bias of m is corrected outside of atan2, that of v inside. Tensors are updated
    together, by torch's foreach kernels, as many at a time as need little memory beside them.

    An update is made only if all is finite on every rank, squares of gradients too: otherwise tensors, moments
    and count stay as they are. The decision stays on the device, so nobody waits for it.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        device = self.param_groups[0]["params"][0].device
        self.num_updates = torch.zeros((), dtype=torch.float64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        """Set before a step: whether the loss is finite on this rank. After it: whether the update was made."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update with the learning rate of each group."""
        assert closure is None, "a closure would need a second forward"
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        # The largest elements, whose squares go into the second moment.
        norms = torch._foreach_norm([p.grad for p in params if p.numel()], math.inf)
        finite = torch.stack([self.finite, *(norm < _LARGEST for norm in norms)]).all()
        self.finite = collectives.all_reduce_and(finite)
        self.num_updates += self.finite
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            moments = [self.moments(p) for p in params]
            exp_avgs, exp_avg_sqs = [m for m, _ in moments], [v for _, v in moments]
            for parts in _in_parts(params, [p.grad for p in params], exp_avgs, exp_avg_sqs):
                self._update(group, *parts)

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
    ) -> None:
        lr, (beta1, beta2), finite, count = group["lr"], group["betas"], self.finite, self.num_updates

        def factor(value: float | Tensor, otherwise: float) -> Tensor:
            return torch.where(finite, value, otherwise).to(torch.float32)

        # Where something is not finite, m moves towards itself and all factors are 1 or 0: nothing changes.
        made = factor(1.0, 0.0)
        grads = [torch.where(finite, grad, m) for grad, m in zip(grads, exp_avgs, strict=True)]
        torch._foreach_mul_(params, factor(1 - lr * group["weight_decay"], 1.0))
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(grads, made)
        torch._foreach_mul_(exp_avg_sqs, factor(beta2, 1.0))
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

        updates = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(updates, _TINY)
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, exp_avgs)
        torch._foreach_mul_(updates, factor((1 - beta2**count).sqrt(), 0.0))
        torch._foreach_atan_(updates)  # atan2(m, s) is atan(m / s), as s is never negative
        torch._foreach_mul_(updates, factor(lr / (1 - beta1**count), 0.0))
        torch._foreach_sub_(params, updates)

    def moments(self, param: Tensor) -> tuple[Tensor, Tensor]:
        """The running means of a tensor's gradient and of its square."""
        state = self.state[param]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        return state["exp_avg"], state["exp_avg_sq"]


def _in_parts(*lists: list[Tensor]) -> Iterator[list[list[Tensor]]]:
    """The same lists, a part of their elements at a time; tensors of one place are equally long."""
    if sum(tensor.numel() for tensor in lists[0]) <= _MAX_ELEMENTS:
        yield list(lists)
        return
    for tensors in zip(*lists, strict=True):
        pieces = [tensor.view(-1).split(_MAX_ELEMENTS) for tensor in tensors]
        for piece in zip(*pieces, strict=True):
            yield [[part] for part in piece]


def learning_rate(step: int, base_lr: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Linear warm-up, then a half cosine from base_lr to min_ratio * base_lr; steps count from 1."""
    if step < warmup_steps:
        return base_lr * step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base_lr * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


class EMA:
    """Exponential moving average of the trained parameters, used for evaluation."""

    def __init__(self, params: Sequence[Tensor], rate: float) -> None:
        self.rate = rate
        self.params = list(params)
        self.averages = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self, made: Tensor) -> None:
        """Follow the parameters after an update, if it was made (a bool on their device)."""
        weight = torch.where(made, 1 - self.rate, 0.0).to(torch.float32)
        for average, param in zip(self.averages, self.params, strict=True):
            average.lerp_(param, weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; a second call puts them back."""
        for param, average in zip(self.params, self.averages, strict=True):
            for [own], [other] in _in_parts([param], [average]):
                kept = own.clone()
                own.copy_(other)
                other.copy_(kept)
