"""Measure how the memory of a backward pass grows with the cycles, and draw it."""

import io
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipeline.base.files import replace_file
from data_pipeline.base.matplotlib_settings import plain_matplotlib
from data_pipeline.base.table import table
from data_pipeline.reader import widen
from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import TrainConfig
from hrm_dist.distributed.process_group import World
from hrm_dist.model import build_model
from hrm_dist.model.act import ACTModel, Batch
from hrm_dist.model.layers import checkpoint_activations
from hrm_dist.model.losses import act_loss
from hrm_dist.model.memory_estimate import memory_per_rank
from tools.bench_train.speed import RandomReader

CYCLES = ((2, 2), (4, 4), (8, 8))


SERIES = {
    "one_step": ("one_step", False),
    "last_cycle": ("last_cycle", False),
    "bptt": ("bptt", False),
    "one_step, recomputed": ("one_step", True),
    "bptt, recomputed": ("bptt", True),
}
"""Lines of the table: `gradient` and `activation_checkpointing`."""
COLORS = {"one_step": "tab:blue", "last_cycle": "tab:orange", "bptt": "tab:red"}
Peaks = dict[str, list[int]]  # bytes of a series at each of CYCLES


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage that an operation under it makes, until it is freed, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        given = set(map(id, _storages((args, kwargs))))  # a view, or an update in place, makes no storage
        for storage in _storages(result):
            if id(storage) not in given:
                given.add(id(storage))
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_activation_bytes(model: ACTModel, batch: Batch) -> int:
    """Return the most bytes alive at once in a segment, its loss and its backward pass, beyond those before it.

    Before it there are weights, their gradients, the carry and the batch. The peak holds what the backward
    pass needs, and whatever is computed along the way.
    """
    device = batch["inputs"].device
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    carry = model.initial_carry(batch, model.arch.num_chains)
    min_halt_steps = torch.zeros_like(carry.steps)
    noise_keys = torch.zeros_like(carry.steps, dtype=torch.int64)

    def segment() -> None:
        new_carry, outputs = model(carry, batch, min_halt_steps, noise_keys=noise_keys)
        loss, _ = act_loss(new_carry, outputs, model.arch.loss_type)
        loss.backward()

    if device.type == "cuda":
        segment()  # libraries allocate their workspaces once
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        segment()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        segment()
    return live.peak


def measure(
    config: TrainConfig, metadata: DatasetMetadata, world: World, plot: Path | None
) -> dict[str, object]:
    """Return the peaks of every series at every number of cycles, and their estimates; draw the peaks into `plot`."""
    local_batch_size = config.global_batch_size // world.world_size
    reader = RandomReader(metadata, config.global_batch_size, world)
    on_device = {name: tensor.to(world.device) for name, tensor in reader.batch(0).items()}
    batch = widen(on_device, metadata.pad_id)
    peaks: Peaks = {label: [] for label in SERIES}
    estimates: Peaks = {label: [] for label in SERIES}
    for label, (gradient, recomputes) in SERIES.items():
        for H_cycles, L_cycles in CYCLES:
            cycles = {"H_cycles": H_cycles, "L_cycles": L_cycles}
            of_series = {**cycles, "gradient": gradient, **config.arch.description.fixed}
            arch = config.arch.model_copy(update=of_series)
            model = build_model(arch, metadata).to(world.device)
            if recomputes:
                checkpoint_activations(model)
            peaks[label].append(peak_activation_bytes(model, batch))
            changed = {"arch": arch, "activation_checkpointing": recomputes, "compile": False}
            estimate = memory_per_rank(config.model_copy(update=changed), metadata, world.world_size)
            estimates[label].append(estimate["activations"])
    if world.is_main:
        print(_table(peaks, estimates))
        if plot is not None:
            about = f"{config.arch.name.upper()}, {local_batch_size} sequences of {metadata.seq_len} tokens"
            draw(peaks, f"{about}, {config.precision}", plot)
    return {
        "benchmark": "memory",
        "arch": config.arch.name,
        "precision": config.precision,
        "batch_size": local_batch_size,
        "seq_len": metadata.seq_len,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "cycles": CYCLES,
        "peak_activation_bytes": peaks,
        "estimated_bytes": estimates,
        "one_step_spread": round(max(peaks["one_step"]) / min(peaks["one_step"]) - 1, 4),
    }


def _table(peaks: Peaks, estimates: Peaks) -> str:
    heads = [f"{H_cycles} x {L_cycles}" for H_cycles, L_cycles in CYCLES]
    rows = [("gradient", *heads)]
    for label, sizes in peaks.items():
        pairs = zip(sizes, estimates[label], strict=True)
        rows.append((label, *(f"{size / 1e6:,.1f} ({estimate / 1e6:,.1f})" for size, estimate in pairs)))
    title = "peak of the activations in MB (estimate), by H_cycles x L_cycles"
    return "\n".join([title, *table(rows, "<>")])


@plain_matplotlib()
def draw(peaks: Peaks, about: str, path: Path) -> None:
    """Draw a line per series over the number of updates, both axes logarithmic."""
    # A second of import that a measurement without a picture need not pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    num_updates = [H_cycles * (L_cycles + 1) for H_cycles, L_cycles in CYCLES]
    for label, (gradient, recomputes) in SERIES.items():
        megabytes = [size / 1e6 for size in peaks[label]]
        axes.plot(num_updates, megabytes, "s--" if recomputes else "o-", color=COLORS[gradient], label=label)
        axes.annotate(
            f"{megabytes[-1]:,.0f}", (num_updates[-1], megabytes[-1]), (6, -4), textcoords="offset points"
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="updates of H and L in a segment (H_cycles x L_cycles)",
        ylabel="peak of the activations, MB",
    )
    cycles = [f"{H_cycles} x {L_cycles}" for H_cycles, L_cycles in CYCLES]
    ticks = [f"{count}\n({text})" for count, text in zip(num_updates, cycles, strict=True)]
    axes.set_xticks(num_updates, ticks)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(right=num_updates[-1] * 1.4)
    axes.set_title(f"Memory for the backward pass: {about}", fontsize=11)
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.legend(title="arch.gradient; recomputed:\nactivation_checkpointing", loc="outside right upper")
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=150)
    replace_file(path, picture.getvalue())
