"""What a training run would be: its steps, the size of its model, and in which memory it fits."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.base.errors import InputError
from data_pipeline.base.sizes import size_text
from data_pipeline.base.table import table
from data_pipeline.kinds import KIND_OF_PRESET
from data_pipeline.schema import NOTHING_HELD_OUT, DatasetMetadata, load_dataset_info
from data_pipeline.windows import refuse_kind_without_windows
from hrm_dist.config import TrainConfig, sequences_per_process, to_yaml, total_steps
from hrm_dist.config.data_command import data_command

if TYPE_CHECKING:
    from hrm_dist.model.flops import Lengths

_GPU_SIZES_GB = (16, 24, 40, 80, 141)
# The rest is for what the estimate may miss, what the allocator holds in reserve, evaluation, and the driver.
_USABLE = 0.85
_NODE = 8


def dry_run(path: Path, config: TrainConfig, world_size: int) -> str:
    """Return every setting of a configuration file and its overrides, and what follows from them."""
    from hrm_dist.model.attention_kernel import describe_attention
    from hrm_dist.model.memory_estimate import memory_per_rank, num_parameters
    from hrm_dist.packed_sizes import most_rows

    lines = [to_yaml(config).rstrip(), ""]
    metadata = metadata_of(path, config, lines)
    if metadata is None:
        lines.append("parameters and memory: known once the dataset is there")
        return "\n".join(lines)
    local_batch_size = -(-config.global_batch_size // world_size)
    seq_len = config.arch.prefix_len + metadata.seq_len
    lengths = _lengths(config, metadata, world_size, lines) if config.padding == "skip" else None
    memory = memory_per_rank(config, metadata, world_size, most_rows(config, lengths, seq_len, world_size))
    lines.append(f"parameters: {num_parameters(config.arch, metadata):,}")
    lines.append(
        f"memory per process, with {local_batch_size} of {config.global_batch_size} sequences (estimate):"
    )
    sizes = {**memory, "total": sum(memory.values())}
    lines += table([(purpose, size_text(size)) for purpose, size in sizes.items()], "<>", indent="  ")
    kernel = (
        "within each sequence: on a GPU torch's variable-length kernel, on a CPU one call for each"
        if config.padding == "skip"
        else describe_attention(config.attention, config.arch, seq_len, config.device)
    )
    lines.append(f"attention: {kernel}")
    if config.device != "cpu":
        lines += _fitting(config, metadata, world_size, lengths)
    lines += _speed(config, world_size)
    return "\n".join(lines)


def _lengths(
    config: TrainConfig, metadata: DatasetMetadata, world_size: int, lines: list[str]
) -> "Lengths | None":
    """Return how long sequences are without their padding, if the dataset is there, and add what follows from it."""
    from hrm_dist.model.flops import flops_per_sequence
    from hrm_dist.packed_sizes import share_of_empty_rows, training_lengths, training_sizes

    if not (Path(config.data_path) / "dataset.json").exists():
        lines.append(
            "padding: skipped; how much that saves is known once the dataset is there, and memory is told as if it "
            "were computed"
        )
        return None
    lengths = training_lengths(config)
    assert lengths is not None
    longest = config.arch.prefix_len + metadata.seq_len
    whole, part = (
        1e-12
        * config.global_batch_size
        * flops_per_sequence(config.arch, metadata, config.activation_checkpointing, some)
        for some in (None, lengths)
    )
    lines.append(
        f"padding: skipped; {lengths.mean() / longest:.1%} of positions are computed, in {part:,.4g} TFLOP a step in "
        f"place of {whole:,.4g} ({part / whole:.1%}; means over sequences)"
    )
    num_sequences = sequences_per_process(config, world_size)
    sizes = training_sizes(config, lengths, longest, num_sequences)
    rows = [f"{size.num_rows:,}" for size in sizes if size.num_micro_batches == sizes[0].num_micro_batches]
    whole_batch = f"{longest * num_sequences // sizes[0].num_micro_batches:,}"
    empty = share_of_empty_rows(config, lengths, longest, sizes, world_size)
    text = (
        f"rows of a packed batch: {', '.join(rows)} (with padding: {whole_batch}), {empty:.1%} of them empty"
    )
    if sizes[-1].num_micro_batches > sizes[0].num_micro_batches:
        text += f"; one that needs more is computed in {sizes[-1].num_micro_batches} parts"
    lines.append(text)
    return lengths


def _speed(config: TrainConfig, world_size: int) -> list[str]:
    """Return how steps are computed, on the device that training would take here."""
    import torch

    from hrm_dist.cuda_graph import step_text

    device_type = "cpu" if config.device == "cpu" else "cuda"
    note = ""
    if config.device == "auto" and not torch.cuda.is_available():
        note = " (on a GPU, which this machine has not)"
    compiled = "compiled" if config.compiles_on(device_type) else "not compiled"
    return [f"a training step is {compiled}, and {step_text(config, device_type, world_size)}{note}"]


def metadata_of(path: Path, config: TrainConfig, lines: list[str]) -> DatasetMetadata | None:
    """Return what is known of the data, and add what there is to say of it."""
    try:
        info = load_dataset_info(Path(config.data_path))
    except InputError as error:
        return _expected(path, config, error, lines)
    metadata, test = info.metadata("train"), info.splits.test
    steps = total_steps(config, metadata)
    lines.append(f"steps: {min(steps, config.max_steps or steps):,} on a schedule of {steps:,}")
    held_out = f"{test.num_examples:,} examples of {test.total_groups:,} groups"
    lines.append(f"held out: {held_out if test.total_groups else NOTHING_HELD_OUT}")
    return metadata


def _expected(path: Path, config: TrainConfig, error: InputError, lines: list[str]) -> DatasetMetadata | None:
    """Return what the data will be when it is built, where the configuration says how."""
    spec, command = config.dataset, data_command(path, config)
    if spec is not None:
        request = spec.request(Path(config.data_path), workers=1, quiet=True)
        lines.append(f"data: {config.data_path} is missing; training builds it first, as `dataset` says")
    elif command is not None:
        request = command.request
        lines.append(f"data: {config.data_path} is missing; this builds it: {command.text}")
    else:
        lines.append(f"data: {error}")
        return None
    kind = KIND_OF_PRESET[request.preset]
    if config.padding == "skip":
        refuse_kind_without_windows(config.data_path, kind.name)
    metadata = kind.expect(request)
    identifiers = "no puzzle identifiers"
    if metadata.num_puzzle_identifiers > 1:
        identifiers = f"at most {metadata.num_puzzle_identifiers:,} puzzle identifiers"
    lines.append(
        f"the figures below assume {request.preset}: {metadata.seq_len} tokens, a vocabulary of {metadata.vocab_size}, "
        f"{identifiers}"
    )
    return metadata


def _fitting(
    config: TrainConfig, metadata: DatasetMetadata, world_size: int, lengths: "Lengths | None"
) -> list[str]:
    """Return a table: in which GPUs it fits, on as many processes as now and, from one, on those of a node."""
    counts = [world_size]
    if world_size == 1 and config.global_batch_size % _NODE == 0:
        counts.append(_NODE)
    heads = [f"{count} process{'es' if count > 1 else ''}" for count in counts]
    columns = [list(_accumulation(config, metadata, count, lengths)) for count in counts]
    rows = [(f"{size} GB", *cells) for size, *cells in zip(_GPU_SIZES_GB, *columns, strict=True)]
    lines = ["fits in GPUs (a number: with that gradient_accumulation_steps):"]
    lines += table([("memory", *heads), *rows], ">", indent="  ")
    if any("no" in column for column in columns):
        lines.append("  no: needs activation_checkpointing=true, or engine=fsdp2 on more processes")
    return lines


def _accumulation(
    config: TrainConfig, metadata: DatasetMetadata, world_size: int, lengths: "Lengths | None"
) -> Iterator[str]:
    """Yield for each size of GPU how many micro-batches make it fit, in words."""
    from hrm_dist.model.memory_estimate import memory_per_rank
    from hrm_dist.packed_sizes import most_rows

    def need(num_micro_batches: int) -> int:
        split = config.model_copy(update={"gradient_accumulation_steps": num_micro_batches})
        num_rows = most_rows(split, lengths, config.arch.prefix_len + metadata.seq_len, world_size)
        return sum(memory_per_rank(split, metadata, world_size, num_rows).values())

    size = -(-config.global_batch_size // world_size)
    least = config.gradient_accumulation_steps
    divisors = [n for n in range(least, size + 1) if size % n == 0] or [least]
    needs = {n: need(n) for n in divisors}
    for gigabytes in _GPU_SIZES_GB:
        fitting = next((n for n, need in needs.items() if need <= _USABLE * gigabytes * 1e9), None)
        yield "no" if fitting is None else "yes" if fitting == least else str(fitting)
