"""Count what the host issues in a training step."""

import os
import re
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

_OF_AUTOGRAD = ("autograd::", "torch::autograd::")
_GRAPH_CALL = "## Call CompiledFxGraph"  # what Inductor names a call, forward or backward
_LAUNCH = re.compile(r"cu(da)?(Launch(Cooperative)?Kernel|GraphLaunch)")


def host_work(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Take one more step and return `host_ops_per_step` and, on a GPU, `kernel_launches_per_step`; see `count`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or every profile writes lines on stderr
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    counted = count(profiler.events() or ())
    if device.type != "cuda":
        del counted["kernel_launches_per_step"]
    return counted


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
