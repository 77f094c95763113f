"""The engine that splits state over the ranks by DeepSpeed's ZeRO.

Stage 1 splits optimizer and moving average, stage 2 also gradients, stage 3 also weights.
It relies on names that DeepSpeed does not document, so pyproject.toml pins its minor version:
`single_partition_of_fp32_groups`, `update_lp_params`, `_lazy_init_hp_params_optimizer_state`, `check_grad_overflow` and
a parameter's `_hp_mapping` (stages 1 and 2), `fp32_partitioned_groups_flat`, `_get_norm_groups`,
`_reassign_or_swap_out_partitioned_parameters`, `parameter_offload.fwd_pre_hook`, `zero.Init._zero_init_param` and a
parameter's `ds_tensor` (stage 3), `ops.__compatible_ops__` and the accelerator's `device_count`.
"""

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.base.errors import InputError
from hrm_dist.config import TrainConfig
from hrm_dist.config.architectures import level_runs
from hrm_dist.distributed import collectives
from hrm_dist.engines.base import (
    OPTIMIZER,
    Engine,
    InitModuleFn,
    gather_units,
    named_parameters,
    optimizer_settings,
)
from hrm_dist.tensor_shards import TensorShard

_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
_BUCKET_ELEMENTS = 2**25
# DeepSpeed calls them by the names that torch deprecated in 2.13.
_OLD_COLLECTIVES = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)`"


class _SummingOptimizer(OPTIMIZER):
    """The optimizer given the mean of the ranks' gradients, where it wants their sum.

    Each rank's loss is already divided by the global batch size. To scale the loss would also scale the gradient
    of what goes into the network.
    """

    def step(self, closure: Any = None) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        torch._foreach_mul_(grads, collectives.world_size())
        super().step(closure)


def _settings(stage: int, num_params: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration. Numeric precision is the model's own affair: here everything is float32."""
    zero: dict[str, Any] = {
        "stage": stage,
        # Allocated whole, so not larger than what it can hold, and small beside a large model.
        "reduce_bucket_size": min(num_params, _BUCKET_ELEMENTS),
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
        "managed_gradient_accumulation": False,  # an update is made by `step`, after any number of `backward`
        "gradient_clipping": 0.0,  # the default is 1
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device three times in a step
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """Give the import of DeepSpeed and what it makes their environment, without their warnings."""
    warnings.filterwarnings("ignore", _OLD_COLLECTIVES, FutureWarning)
    # It asks for LOCAL_RANK even where there is one process.
    values = {"DS_ACCELERATOR": device.type, "LOCAL_RANK": str(device.index or 0)}
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        # What torch deprecates of its own, it imports.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            yield
    finally:
        for name in missing:
            del os.environ[name]


def _materialize(network: nn.Module, stage: int, device: torch.device, init_module: InitModuleFn) -> None:
    """Give a network on the meta device its initial weights; in stage 3 one module at a time is whole."""
    import deepspeed

    partitioner = None
    if stage == 3:
        settings = _settings(stage, num_params=sum(param.numel() for param in network.parameters()))
        partitioner = deepspeed.zero.Init(config_dict_or_path=settings, dtype=torch.float32)
    for name, module in network.named_modules():
        module.to_empty(device=device, recurse=False)
        init_module(name, module, Tensor.copy_)
        if partitioner is not None:
            for param in module.parameters(recurse=False):
                partitioner._zero_init_param(param)


def _units(network: nn.Module, config: TrainConfig) -> list[nn.Module]:
    """Return what stage 3 gathers as a whole; without any, it gathers every weight by itself.

    Such a unit may carry gradient only once in a segment, or its gradients are reduced too early.
    """
    carries_once = all(runs.with_gradient == 1 for runs in level_runs(config.arch).values())
    if config.gather_unit != "loop" and not carries_once:
        return []
    return gather_units(network, config.gather_unit)


def _initialize(
    network: nn.Module, optimizer: OPTIMIZER, stage: int, units: Sequence[nn.Module]
) -> tuple[Any, Any]:
    """Return DeepSpeed's wrappers of the network and of the optimizer."""
    import deepspeed

    params: list[Any] = list(network.parameters())
    num_params = sum(param.ds_numel if stage == 3 else param.numel() for param in params)
    # In stage 3 such a module is gathered as a whole, however much happens inside.
    for module in units:
        deepspeed.utils.set_z3_leaf_module(module, True)
    wrapped: tuple[Any, ...] = deepspeed.initialize(
        model=network, optimizer=optimizer, config=_settings(stage, num_params), dist_init_required=False
    )
    # Stage 3 asks in every step, and on a CPU the answer comes from a `numactl` process.
    accelerator: Any = deepspeed.accelerator.get_accelerator()
    accelerator.device_count = functools.cache(accelerator.device_count)
    engine, zero_optimizer = wrapped[:2]
    # Whether all is finite is our optimizer's affair: DeepSpeed would wait for the device to know.
    if stage == 3:
        zero_optimizer._get_norm_groups = lambda: [torch.zeros(())]
        # It records the order of modules, to prefetch parameters and to keep whole what is used again soon. The
        # order is another for a Q-target than for a training segment, and each change costs four broadcasts.
        zero_optimizer.parameter_offload.fwd_pre_hook.remove()
    else:
        zero_optimizer.check_grad_overflow = False
    return engine, zero_optimizer


class DeepSpeedEngine(Engine):
    """ZeRO in stage 1, 2 or 3, with our optimizer and its state split over the ranks."""

    def __init__(
        self, network: nn.Module, config: TrainConfig, device: torch.device, init_module: InitModuleFn
    ) -> None:
        self._stage = _STAGES[config.engine]
        with _quiet(device):
            _prepare_import(config.engine)
            _materialize(network, self._stage, device, init_module)
            self._params = named_parameters(network)
            self._optimizer = _SummingOptimizer(self._params.values(), **optimizer_settings(config))
            self._engine, self._zero = _initialize(
                network, self._optimizer, self._stage, _units(network, config)
            )
        self.network: nn.Module = self._engine
        partitions = (
            self._zero.fp32_partitioned_groups_flat
            if self._stage == 3
            else self._zero.single_partition_of_fp32_groups
        )
        for partition in partitions:
            self._optimizer.state_of(partition)
        self._kinds = list(self._optimizer.state_of(partitions[0]))
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def _update(self) -> None:
        self._engine.step()

    def _weights_changed(self) -> None:
        """Let the network compute with what the optimizer's float32 partitions hold now."""
        if self._stage < 3:
            self._zero.update_lp_params()
            return
        self._engine.empty_partition_cache()  # nothing is left whole, with the other weights
        for index in range(len(self._zero.fp32_partitioned_groups_flat)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)

    def _all_shards(self) -> Iterator[TensorShard]:
        """Yield views of what this rank has of every parameter, cut out of DeepSpeed's float32 partitions."""
        shards_of = _shards_in_stage_3 if self._stage == 3 else _shards_in_stages_1_and_2
        for name, param in self._params.items():
            yield from shards_of(name, param, self._kinds)


def _shards_in_stages_1_and_2(name: str, param: Any, kinds: Sequence[str]) -> Iterator[TensorShard]:
    mapping = param._hp_mapping
    if mapping is None:
        return
    shape, offset = tuple(param.shape), mapping.lp_fragment_address.start
    yield TensorShard(f"model.{name}", shape, offset, mapping.get_hp_fragment())
    for kind in kinds:
        yield TensorShard(f"{kind}.{name}", shape, offset, mapping.get_hp_fragment(kind))


def _shards_in_stage_3(name: str, param: Any, kinds: Sequence[str]) -> Iterator[TensorShard]:
    """Yield an equal share of the flattened parameter; what pads the last ones is left out."""
    from deepspeed import utils

    size = param.ds_tensor.numel()
    shape, offset = tuple(param.ds_shape), collectives.rank() * size
    length = min(size, param.ds_numel - offset)
    if length <= 0:
        return
    weights: Any = utils.safe_get_local_fp32_param(param)
    yield TensorShard(f"model.{name}", shape, offset, weights[:length])
    for kind in kinds:
        state: Any = utils.safe_get_local_optimizer_state(param, kind)
        yield TensorShard(f"{kind}.{name}", shape, offset, state[:length])


def _prepare_import(engine: str) -> None:
    """Import DeepSpeed, which takes a while and changes the process, and settle what it does unasked.

    Raise InputError where it is installed and cannot be imported, as with libraries of another CUDA.
    """
    try:
        import deepspeed
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"engine={engine}: DeepSpeed cannot be imported ({type(error).__name__}: {reason}); try `python -c "
            '"import deepspeed"`, install it anew, or use engine=fsdp2'
        ) from error

    # Collectives through shared memory, which would be compiled now and take a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It would say that AdamATan2 is not its own.
    deepspeed.utils.logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
