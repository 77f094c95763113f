"""A function of tensors at fixed places: run as it is at first, then recorded as one CUDA graph and replayed.

A replay costs the host one launch, however many kernels the function launches. What is recorded may read nothing back
from the device, and keeps every Python number that it met: what changes between calls must be in a tensor, written in
place. `HostInputs` are such tensors for what comes from the host.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from hrm_dist.config import ConfigError, TrainConfig

# In the first of these calls libraries compile, choose kernels and take their workspaces.
_PLAIN_CALLS = 11
_ALIGNMENT = 256  # bytes


class Program:
    """A function without a result, called over and over, with one of few arguments."""

    def __init__(self, function: Callable[[Any], None], device: torch.device, *, records: bool) -> None:
        """records: whether to record it for each argument, after some calls that run as they are; on a GPU only."""
        self._function = function
        self._stream = torch.cuda.Stream(device) if records else None
        self._num_plain = 0
        self._has_run: set[Any] = set()
        self._graphs: dict[Any, torch.cuda.CUDAGraph] = {}

    def __call__(self, argument: Any = None) -> None:
        """Run the function, or its record."""
        if self._stream is None:
            self._function(argument)
        elif argument in self._graphs:
            self._graphs[argument].replay()
        # What an argument compiles or tries out when it first comes cannot be recorded, however late that is.
        elif self._num_plain < _PLAIN_CALLS or argument not in self._has_run:
            self._num_plain += 1
            self._has_run.add(argument)
            # On the stream of the record: what autograd and allocator tie to a stream is the same then.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._function(argument)
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            self._record(argument)
            self._graphs[argument].replay()  # recording has computed nothing

    def _record(self, argument: Any) -> None:
        graph = torch.cuda.CUDAGraph()
        # One replay follows another, so they share their memory.
        pool = next((other.pool() for other in self._graphs.values()), None)
        # Other threads (heartbeat, checkpoints, nccl's watchdog) may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            self._function(argument)
        self._graphs[argument] = graph

    @property
    def is_recorded(self) -> bool:
        return bool(self._graphs)


class Spec(NamedTuple):
    """Shape and type of an input."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def num_bytes(self) -> int:
        """Return the bytes it takes with what aligns the next one."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


class _Staging(NamedTuple):
    """Pinned memory on the host, and when the last copy out of it is done."""

    block: Tensor
    tensors: dict[str, Tensor]
    copied: torch.cuda.Event


class HostInputs:
    """Tensors at fixed places on a device that the host fills, all by one copy that nobody waits for."""

    def __init__(self, specs: Mapping[str, Spec], device: torch.device) -> None:
        self._specs = dict(specs)
        num_bytes = sum(spec.num_bytes for spec in self._specs.values())
        self._block = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self.tensors = self._views(self._block)
        self._staging: list[_Staging] = []
        if device.type == "cuda":
            # Two, so that one can be filled while the device has yet to take the other.
            for _ in range(2):
                block = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)
                self._staging.append(_Staging(block, self._views(block), torch.cuda.Event()))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite all inputs; the values, on the host, are free for other use afterwards."""
        assert values.keys() == self._specs.keys()
        if not self._staging:
            _copy(values, self.tensors)
            return
        staging = self._staging.pop(0)
        self._staging.append(staging)
        staging.copied.synchronize()
        _copy(values, staging.tensors)
        self._block.copy_(staging.block, non_blocking=True)
        staging.copied.record()

    def _views(self, block: Tensor) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        start = 0
        for name, spec in self._specs.items():
            size = math.prod(spec.shape) * spec.dtype.itemsize
            views[name] = block[start : start + size].view(spec.dtype).view(spec.shape)
            start += spec.num_bytes
        return views


def _copy(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        assert value.shape == tensors[name].shape, name
        tensors[name].copy_(value)


def step_text(config: TrainConfig, device_type: str, world_size: int) -> str:
    """Return how the host starts a training step, in words."""
    reason = why_plain(config, device_type, world_size)
    if reason is None:
        return f"recorded as one CUDA graph after the first {_PLAIN_CALLS}"
    return f"started operation by operation ({reason})"


def why_plain(config: TrainConfig, device_type: str, world_size: int) -> str | None:
    """Return why training steps are not recorded, in words, or None if they are.

    Raise ConfigError if they should be and cannot.
    """
    if config.cuda_graph == "off":
        return "cuda_graph=off"
    reasons = {
        f"engine={config.engine}, whose library decides on the host": config.engine != "ddp",
        "puzzle_emb_device=cpu, whose rows pass through the host": config.puzzle_emb_device == "cpu",
        f"the device is {device_type}": device_type != "cuda",
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None and config.cuda_graph == "on":
        raise ConfigError(f"cuda_graph=on: not with {reason}; set cuda_graph=auto, or change that.")
    if reason is None and world_size > 1 and config.cuda_graph == "auto":
        return f"{world_size} processes, with which it was not measured yet; try cuda_graph=on"
    return reason
