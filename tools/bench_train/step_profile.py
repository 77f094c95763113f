"""Profile a training step: what the host issues, and where the device spends the time."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from data_pipeline.base.table import table

_OF_AUTOGRAD = ("autograd::", "torch::autograd::")
_GRAPH_CALL = "## Call CompiledFxGraph"  # what Inductor names a call, forward or backward
_LAUNCH = re.compile(r"cu(da)?(Launch(Cooperative)?Kernel|GraphLaunch)")
_MOST_ROWS = 20


class StepProfile(NamedTuple):
    """What a profile of a step tells."""

    counts: dict[str, float]
    """`host_ops_per_step` and, on a GPU, `kernel_launches_per_step`; see `count`."""
    time_table: str
    """The kernels of a GPU, or the operators of a CPU, that take the most time."""


def profile_step(step: Callable[[], object], device: torch.device) -> StepProfile:
    """Take one more step under a profiler."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or every profile writes lines on stderr
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = profiler.events() or ()
    counts = count(events)
    if not on_gpu:
        del counts["kernel_launches_per_step"]
    return StepProfile(counts, time_table(events, on_gpu))


def count(events: Iterable[FunctionEvent]) -> dict[str, float]:
    """Count what the host issued, from the events of a profile.

    `host_ops_per_step`: operators (`aten::mm`), calls of compiled graphs, and launches (of a kernel or a CUDA graph),
    each unless an operator called it. Whoever else called it, such as a node of autograd or a compiled graph, does not
    matter and does not count. Kernels that a compiled graph runs on a CPU leave no event, so they are not counted.
    `kernel_launches_per_step`: launches, whatever called them; the replay of a CUDA graph is one.
    """
    num_ops = num_launches = 0
    for event in events:
        kind = _kind(event)
        num_launches += kind == "launch"
        num_ops += kind is not None and not _is_below_an_operator(event)
    return {"host_ops_per_step": num_ops, "kernel_launches_per_step": num_launches}


def _kind(event: FunctionEvent) -> str | None:
    if event.device_type != DeviceType.CPU:
        return None
    if _LAUNCH.match(event.name):
        return "launch"
    if event.name.startswith(_GRAPH_CALL):
        return "graph call"
    return "operator" if "::" in event.name and not event.name.startswith(_OF_AUTOGRAD) else None


def _is_below_an_operator(event: FunctionEvent) -> bool:
    above = event.cpu_parent
    while above is not None:
        if _kind(above) == "operator":
            return True
        above = above.cpu_parent
    return False


def time_table(events: Iterable[FunctionEvent], on_gpu: bool) -> str:
    """Return what takes the most time, by the events of a profile: kernels of a GPU, or operators, less those below."""
    calls: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in events:
        if event.is_user_annotation or event.device_type != (DeviceType.CUDA if on_gpu else DeviceType.CPU):
            continue
        calls[event.name] += 1
        times[event.name] += event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
    rows = [("ms", "calls", "kernels" if on_gpu else "operators")]
    rows.append((f"{times.total() / 1e3:.2f}", str(calls.total()), "all"))
    for name, time in times.most_common(_MOST_ROWS):
        rows.append((f"{time / 1e3:.2f}", str(calls[name]), name[:90]))
    return "\n".join(table(rows, ">><"))
