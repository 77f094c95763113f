"""The engine that splits state over the ranks by DeepSpeed's ZeRO: optimizer and average (stage 1), also gradients (2),
also weights (3).

It relies on names that DeepSpeed does not document, so pyproject.toml pins its minor version:
`single_partition_of_fp32_groups`, `update_lp_params` and `_lazy_init_hp_params_optimizer_state` (stages 1 and 2),
`fp32_partitioned_groups_flat`, `_reassign_or_swap_out_partitioned_parameters`, `parameter_offload.fwd_pre_hook` and a
parameter's `ds_tensor` (stage 3), `ops.__compatible_ops__` and the accelerator's `device_count`.
"""

import functools
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from hrm_dist import distributed
from hrm_dist.config import TrainConfig
from hrm_dist.optim import EMA, AdamATan2

_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
_MOMENTS = ("exp_avg", "exp_avg_sq")
# DeepSpeed calls them by the names that torch deprecated in 2.13.
_OLD_COLLECTIVES = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)`"


class _SummingAdamATan2(AdamATan2):
    """AdamATan2 given the mean of the ranks' gradients, where it wants their sum.

    Each rank's loss is already divided by the global batch size. To scale the loss would also scale the gradient
    of what goes into the network.
    """

    def step(self, closure: Any = None) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        torch._foreach_mul_(grads, distributed.world_size())
        super().step(closure)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether DeepSpeed says something else than that AdamATan2 is not its own."""
    return "untested optimizer" not in record.getMessage()


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Environment variables that have these values within, unless they were set before."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _settings(stage: int, num_params: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Numeric precision is the model's own affair: here everything is float32."""
    zero: dict[str, Any] = {
        "stage": stage,
        # Allocated whole, so not larger than what it can hold.
        "reduce_bucket_size": min(num_params, 500_000_000),
    }
    if stage < 3:
        zero["compute_grad_norm"] = False  # nothing is clipped
    else:
        zero |= {
            "stage3_param_persistence_threshold": 0,  # no parameter stays whole for being small
            # One group for all: the optimizer would be stepped, and count a step, once per group.
            "sub_group_size": 10**15,
        }
    return {
        "train_micro_batch_size_per_gpu": 1,  # unused: losses come divided by the global batch size
        "gradient_clipping": 0.0,  # the default is 1
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }


def _initialize(network: nn.Module, optimizer: AdamATan2, stage: int) -> tuple[Any, Any]:
    """DeepSpeed's wrappers of the network and of the optimizer.

    DeepSpeed is imported here, since that takes a while and changes the process (environment, filters, modules).
    """
    params = list(network.parameters())
    device = params[0].device
    warnings.filterwarnings("ignore", _OLD_COLLECTIVES, FutureWarning)
    # It asks for LOCAL_RANK even where there is one process. What torch deprecates of its own, it imports.
    with (
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
        _variables(DS_ACCELERATOR=device.type, LOCAL_RANK=str(device.index or 0)),
    ):
        import deepspeed

        # Collectives through shared memory, which would be compiled now and take a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.logger.addFilter(_is_news)
        # In stage 3 the whole recurrence is one unit, gathered once per segment, however many cycles that has.
        deepspeed.utils.set_z3_leaf_module(network.get_submodule("recurrence"), True)
        wrapped: tuple[Any, ...] = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            config=_settings(stage, num_params=sum(param.numel() for param in params)),
            dist_init_required=False,
        )
        # Stage 3 asks in every step, and on a CPU the answer comes from a `numactl` process.
        accelerator: Any = deepspeed.accelerator.get_accelerator()
        accelerator.device_count = functools.cache(accelerator.device_count)
    engine, zero_optimizer = wrapped[:2]
    if stage == 3:
        # It records the order of modules, to prefetch parameters and to keep whole what is used again soon. The
        # order is another for a Q-target than for a training segment, and each change costs four broadcasts.
        zero_optimizer.parameter_offload.fwd_pre_hook.remove()
    return engine, zero_optimizer


class DeepSpeedEngine:
    """ZeRO in stage 1, 2 or 3, with our optimizer and its state split over the ranks.

    Unlike the other engines, stage 3 leaves out an update whose gradients are not finite.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._stage = _STAGES[config.engine]
        self._params = dict(network.named_parameters())
        self._optimizer = _SummingAdamATan2(
            self._params.values(), config.lr, (config.beta1, config.beta2), config.weight_decay
        )
        self._engine, self._zero = _initialize(network, self._optimizer, self._stage)
        self.network: nn.Module = self._engine
        partitions = (
            self._zero.fp32_partitioned_groups_flat
            if self._stage == 3
            else self._zero.single_partition_of_fp32_groups
        )
        self._ema = EMA(partitions, config.ema_rate) if config.ema else None
        # The average is one more state of the optimizer, so that it is cut into parameters like the moments.
        self._keys = [*_MOMENTS, "ema"] if self._ema is not None else [*_MOMENTS]
        for index, partition in enumerate(partitions):
            state = self._optimizer.state[partition]
            state |= {moment: torch.zeros_like(partition) for moment in _MOMENTS}
            if self._ema is not None:
                state["ema"] = self._ema.averages[index]
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        if self._ema is not None:
            self._ema.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self._ema is None:
            yield
            return
        self._ema.swap()
        self._use_partitions()
        try:
            yield
        finally:
            self._ema.swap()
            self._use_partitions()

    def _use_partitions(self) -> None:
        """Let the network compute with what the optimizer's float32 partitions hold now."""
        if self._stage < 3:
            self._zero.update_lp_params()
            return
        self._engine.empty_partition_cache()  # nothing is left whole, with the other weights
        for index in range(len(self._zero.fp32_partitioned_groups_flat)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)

    def full_state(self) -> dict[str, Tensor]:
        from deepspeed import utils

        state: dict[str, Tensor] = {}
        for name, param in self._params.items():
            state[f"weights.{name}"] = cast(Tensor, utils.safe_get_full_fp32_param(param))
            for key in self._keys:
                state[f"{key}.{name}"] = cast(Tensor, utils.safe_get_full_optimizer_state(param, key))
        return state

    @torch.no_grad()
    def load_full_state(self, state: dict[str, Tensor], num_updates: int) -> None:
        from deepspeed import utils

        for name, param in self._params.items():
            weights, parts = state[f"weights.{name}"], {key: state[f"{key}.{name}"] for key in self._keys}
            if self._stage < 3:
                utils.safe_set_full_fp32_param(param, weights)
                for key, whole in parts.items():
                    utils.safe_set_full_optimizer_state(param, whole, key)
            else:  # there, these refuse a parameter that does not divide by the number of ranks
                utils.safe_set_local_fp32_param(param, _own_part(param, weights))
                for key, whole in parts.items():
                    utils.safe_set_local_optimizer_state(param, _own_part(param, whole), key)
        for group in self._optimizer.param_groups:
            group["step"] = num_updates
        self._use_partitions()


def _own_part(param: Any, whole: Tensor) -> Tensor:
    """What stage 3 keeps of a parameter on this rank: an equal share, [numel / ranks], padded at the end."""
    size = param.ds_tensor.numel()
    start = distributed.rank() * size
    part = whole.flatten()[start : start + size]
    return F.pad(part, (0, size - len(part)))
