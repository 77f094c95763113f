"""AdamATan2, the learning-rate schedule, and the moving average of the weights."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Added to sqrt(v), where it changes nothing but 0/0 (a gradient that never was anything but zero) into 0.
_TINY = torch.finfo(torch.float32).tiny


class AdamATan2(torch.optim.Optimizer):
    """Adam with the update atan2(m, sqrt(v)) in place of m / (sqrt(v) + eps) (arXiv 2407.05872).

    No epsilon. Weight decay is decoupled and comes first. As in the optimizer HRM was trained with, there is
    no factor of 1.27, and the bias of m is corrected outside of atan2, that of v inside. All tensors of a
    group are updated together, by torch's foreach kernels.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update with the learning rate of each group."""
        assert closure is None, "a closure would need a second forward"
        for group in self.param_groups:
            group["step"] += 1
            beta1, beta2 = group["betas"]
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            exp_avgs, exp_avg_sqs = self._moments(params)

            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
            torch._foreach_mul_(exp_avg_sqs, beta2)
            torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

            denominators = torch._foreach_sqrt(exp_avg_sqs)
            torch._foreach_add_(denominators, _TINY)
            updates = torch._foreach_div(exp_avgs, denominators)
            torch._foreach_mul_(updates, math.sqrt(1 - beta2 ** group["step"]))
            torch._foreach_atan_(updates)  # atan2(m, s) is atan(m / s), as s is never negative
            torch._foreach_add_(params, updates, alpha=-group["lr"] / (1 - beta1 ** group["step"]))

    def _moments(self, params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in params:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        return [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]


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
    def update(self) -> None:
        torch._foreach_lerp_(self.averages, self.params, 1 - self.rate)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; a second call puts them back."""
        for param, average in zip(self.params, self.averages, strict=True):
            kept = param.clone()
            param.copy_(average)
            average.copy_(kept)
