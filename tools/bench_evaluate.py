"""Time segments of evaluation on random tokens, with random weights.

examples:
  python -m tools.bench_evaluate
      the published HRM (27 M parameters) on the shape of a Sudoku, 32 sequences
  python -m tools.bench_evaluate configs/arc1.yaml --batch-size 96 --seq-len 900 --vocab-size 12
      any configuration and shape; settings as for hrm_dist.train

Segments run through what tools.evaluate uses: as they are (eager); compiled, on a GPU or with compile=true; and on a
GPU compiled and recorded as a CUDA graph, but for cuda_graph=off. They take turns, so that whatever else the machine
does affects all. No dataset is needed: what a segment costs depends on shapes alone. Every input takes halt_max_steps
segments, which inputs_per_s counts. The last line printed is one JSON object.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence

import torch

from data_pipeline.base.command_line import command_parser, whole_number
from data_pipeline.base.errors import InputError, exit_code
from data_pipeline.base.table import table
from data_pipeline.schema import DatasetMetadata
from hrm_dist.config import TrainConfig
from hrm_dist.distributed.process_group import process_group
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.model.act import ACTModel, build_model
from hrm_dist.model.attention_kernel import use_attention_kernel
from hrm_dist.model.flops import evaluation_flops_per_sequence, matmul_rate
from hrm_dist.model.kernels import use_fused_swiglu
from hrm_dist.model.network import Network
from tools.bench_train.__main__ import DEFAULT_CONFIG, config_of, machine
from tools.bench_train.speed import timed_steps
from tools.find_batch_size.one_size import shape

# The host runs ahead of a GPU, and waits for it at the end of a turn.
_SEGMENTS_PER_TURN = {"cpu": 1, "cuda": 10}
# Not timed: compilation, and on a GPU the segments before one is recorded, which are 11, and that one.
_WARM_UP_SEGMENTS = {"cpu": 2, "cuda": 15}


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what is asked for, and print it."""
    options = _parse(arguments)
    config = config_of(options)
    if config.padding == "skip":
        raise InputError("padding=skip: this times random tokens, which fill the canvas; set padding=keep.")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with process_group(config.device) as world:
        result = measure(
            config, shape(options.seq_len, options.vocab_size, num_puzzles=1), world.device, options.steps
        )
    print(json.dumps({**result, "machine": machine(torch.__version__, torch.get_num_threads())}))
    return 0


def measure(
    config: TrainConfig, metadata: DatasetMetadata, device: torch.device, steps: int
) -> dict[str, object]:
    """Return the median time of a segment in each mode, and what follows from it."""
    arch, size, per_turn = config.arch, config.global_batch_size, _SEGMENTS_PER_TURN[device.type]
    segments = _segments(config, metadata, device)
    rate = matmul_rate(device, segments["eager"].model.dtype)
    first = {name: _warmed_up(name, segment, device) for name, segment in segments.items()}
    num_turns = -(-steps // per_turn)
    times: dict[str, list[float]] = {name: [] for name in segments}
    for _ in range(num_turns):
        for name, segment in segments.items():
            times[name].append(timed_steps(segment, device, per_turn).wall)
    rate = max(rate, matmul_rate(device, segments["eager"].model.dtype))
    flops = size * evaluation_flops_per_sequence(arch, metadata)
    rows = {
        name: {
            "seconds_per_segment": round(statistics.median(of_turns), 6),
            "fastest_segment_s": round(min(of_turns), 6),
            "first_segment_s": round(first[name], 2),
            "inputs_per_s": round(size / statistics.median(of_turns) / arch.halt_max_steps, 2),
            "share_of_measured_matmul_rate": round(flops / statistics.median(of_turns) / rate, 4),
        }
        for name, of_turns in times.items()
    }
    print(_table(rows), flush=True)
    return {
        "benchmark": "evaluate",
        "arch": arch.name,
        "cycles": [arch.H_cycles, arch.L_cycles],
        "precision": config.precision,
        "batch_size": size,
        "seq_len": metadata.seq_len,
        "halt_max_steps": arch.halt_max_steps,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "measured_matmul_teraflops_per_s": round(rate / 1e12, 3),
        "segment_teraflops": round(flops / 1e12, 3),
        "steps": num_turns * per_turn,
        **rows,
    }


def _segments(
    config: TrainConfig, metadata: DatasetMetadata, device: torch.device
) -> dict[str, EvaluationSegment]:
    """Return the segment of each mode, all of whose slots hold random tokens."""
    size = config.global_batch_size
    segments = {"eager": EvaluationSegment(_model(config, metadata, device), size, device)}
    if config.compiles_on(device.type):
        model = _model(config, metadata, device)
        assert isinstance(model.network, Network)
        model.compile_parts()
        model.network.compile_parts(with_ends=True)
        segments["compiled"] = EvaluationSegment(model, size, device)
        if device.type == "cuda" and config.cuda_graph != "off":
            segments["recorded"] = EvaluationSegment(model, size, device, records=True)
    tokens = torch.randint(metadata.vocab_size, (size, metadata.seq_len), dtype=torch.uint8)
    batch = {"inputs": tokens, "puzzle_identifiers": torch.zeros(size, dtype=torch.int32)}
    batch["noise_keys"] = torch.arange(size)
    for segment in segments.values():
        segment.refill(batch, torch.ones(size, dtype=torch.bool))
    return segments


def _model(config: TrainConfig, metadata: DatasetMetadata, device: torch.device) -> ACTModel:
    with device:
        model = build_model(config.arch, metadata).eval()
    use_attention_kernel(model, config.attention, config.arch, model.seq_len, device)
    use_fused_swiglu(model, config.fused_swiglu, model.dtype, device)
    model.recurrence.casts_once = device.type == "cuda"
    return model


def _warmed_up(name: str, segment: EvaluationSegment, device: torch.device) -> float:
    """Run the first segments, and return the seconds of the very first."""
    first = timed_steps(segment, device).wall
    print(f"{name}: first segment {first:.1f} s", flush=True)
    timed_steps(segment, device, _WARM_UP_SEGMENTS[device.type] - 1)
    return first


def _table(rows: dict[str, dict[str, float]]) -> str:
    cells = [
        (
            name,
            f"{1e3 * row['seconds_per_segment']:,.2f}",
            f"{1e3 * row['fastest_segment_s']:,.2f}",
            f"{row['inputs_per_s']:,.1f}",
            f"{row['share_of_measured_matmul_rate']:.1%}",
        )
        for name, row in rows.items()
    ]
    heads = ("", "ms a segment", "fastest", "inputs/s", "share of measured peak")
    return "\n".join(table([heads, *cells], "<>"))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("tools.bench_evaluate", __doc__)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG.yaml | key=value",
        help=f"a configuration (default: configs/{DEFAULT_CONFIG.name}) and settings over it",
    )
    for option, default, most, meaning in (
        ("--batch-size", 32, None, "sequences in a segment"),
        ("--seq-len", 81, None, "tokens of a sequence"),
        ("--vocab-size", 11, 256, "kinds of tokens"),
        ("--steps", 10, None, "segments that are timed, after a few that are not"),
    ):
        number = whole_number(1, most)
        text = f"{meaning} (default: %(default)s)"
        parser.add_argument(option, type=number, default=default, metavar="N", help=text)
    return parser.parse_intermixed_args(arguments)  # options may come between the settings


if __name__ == "__main__":
    sys.exit(exit_code(main))
