"""AdamATan2, with the moving average (EMA) of the weights that it updates."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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

    An update is applied only if all is finite on every rank, squares of gradients too: otherwise tensors, moments,
    average and count stay as they are. The decision stays on the device, so nobody waits for it.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        ema_rate: float | None = None,
        *,
        compiles: bool = False,
    ) -> None:
        """ema_rate: what the average of the weights keeps of itself in an update; None: keep no average."""
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._ema_rate, self._compiles = ema_rate, compiles
        if compiles:  # one pass over the tensors, without what the operations one by one keep in between
            self._update = torch.compile(self._update, fullgraph=True, dynamic=False)
            self._move_ema = torch.compile(self._move_ema, fullgraph=True, dynamic=False)
        device = self.param_groups[0]["params"][0].device
        self.num_updates = torch.zeros((), dtype=torch.float64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        """Whether the loss is finite on this rank, which `step` needs to know."""
        self.update_applied = self.finite
        """Whether the last `step` changed anything; the same on every rank."""

    def prepare(self, lr: Tensor, finite: Tensor) -> None:
        """Set the learning rate of the next `step`, [] float64, and whether the loss is finite on this rank."""
        for group in self.param_groups:
            group["lr"] = lr
        self.finite = finite

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update with the learning rate of each group."""
        assert closure is None, "a closure would need a second forward"
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        # The largest elements, whose squares go into the second moment.
        largest = _largest([p.grad for p in params if p.numel()])
        finite = self.finite & (torch.stack(largest) < _LARGEST).all() if largest else self.finite
        self.update_applied = collectives.all_reduce_and(finite)
        self.num_updates += self.update_applied
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            states = [self.state_of(p) for p in params]
            moments = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
            tensors = (params, [p.grad for p in params], *moments)
            for chunk in [tensors] if self._compiles else _in_chunks(*tensors):
                self._update(group, *chunk)
        if self._ema_rate is not None:
            emas = [state["ema"] for state in self.state.values()]
            self._move_ema(emas, list(self.state), torch.where(self.update_applied, 1 - self._ema_rate, 0.0))

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
    ) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        applied, count = self.update_applied, self.num_updates

        def factor(value: float | Tensor, otherwise: float) -> Tensor:
            return torch.where(applied, value, otherwise).to(torch.float32)

        # Where something is not finite, m moves towards itself and all factors are 1 or 0: nothing changes.
        grads = [torch.where(applied, grad, m) for grad, m in zip(grads, exp_avgs, strict=True)]
        torch._foreach_mul_(params, factor(1 - lr * group["weight_decay"], 1.0))
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(grads, factor(1.0, 0.0))
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

    def _move_ema(self, emas: list[Tensor], params: list[Tensor], weight: Tensor) -> None:
        for ema, param in zip(emas, params, strict=True):
            ema.lerp_(param, weight.to(torch.float32))

    def state_of(self, param: Tensor) -> dict[str, Tensor]:
        """Return what is kept for a tensor: `exp_avg` and `exp_avg_sq`, the running means of its gradient and of the
        gradient's square, and `ema`, its own, if averages are kept."""
        state = self.state[param]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
            if self._ema_rate is not None:
                state["ema"] = param.detach().clone()
        return state

    @contextmanager
    def ema_weights(self, on_swap: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Let the tensors hold their averages within a context, where averages are kept.

        on_swap: called after tensors and averages have changed places, at the beginning and at the end.
        """
        if self._ema_rate is None:
            yield
            return
        self._swap_ema()
        on_swap()
        try:
            yield
        finally:
            self._swap_ema()
            on_swap()

    @torch.no_grad()
    def _swap_ema(self) -> None:
        for param, state in self.state.items():
            for [own], [average] in _in_chunks([param], [state["ema"]]):
                kept = own.clone()
                own.copy_(average)
                average.copy_(kept)


def _largest(tensors: list[Tensor]) -> list[Tensor]:
    """Return the largest absolute values of tensors, one or two of each; not a number where an element is none."""
    if tensors and tensors[0].device.type == "cpu":  # where that kernel takes ten times as long
        return [end.abs() for tensor in tensors for end in torch.aminmax(tensor)]
    return list(torch._foreach_norm(tensors, math.inf))


def _in_chunks(*lists: list[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Yield the same lists, some of their elements at a time; tensors at the same index have the same size."""
    if sum(tensor.numel() for tensor in lists[0]) <= _MAX_ELEMENTS:
        yield list(lists)
        return
    for tensors in zip(*lists, strict=True):
        for chunks in zip(*(tensor.view(-1).split(_MAX_ELEMENTS) for tensor in tensors), strict=True):
            yield [[chunk] for chunk in chunks]
