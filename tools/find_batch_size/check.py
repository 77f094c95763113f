"""Compare the estimate of a training step's memory with what is measured, for published models."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from data_pipeline.base.errors import InputError
from data_pipeline.base.sizes import size_text
from tools.find_batch_size import one_size
from tools.find_batch_size.one_size import Job, Row

_CONFIGS = Path(__file__).parents[2] / "configs"
# Of the free memory, for processes side by side, each with half a GB of the driver and a reserve of the allocator.
_USABLE = 0.7
_AT_A_TIME = 6
_HEADS = ("configuration", "batch size", "", "measured", "estimated", "ratio")
_WIDTHS = (22, 14, 10, 12, 12, 8)


class Case(NamedTuple):
    """A published model, a shape of data, and a batch size."""

    config: str
    seq_len: int
    vocab_size: int
    batch_size: int
    overrides: tuple[str, ...] = ()


CASES = (
    Case("trm_sudoku_mlp", 81, 11, 768),
    Case("arc1", 900, 12, 96),
    Case("trm_sudoku_attention", 81, 11, 384),
    Case("sudoku_extreme_1k", 81, 11, 384),
    Case("sudoku_extreme_1k", 81, 11, 96),
)


class _Memory:
    """Bytes that processes side by side share."""

    def __init__(self, num_bytes: float) -> None:
        self._all = self._free = num_bytes
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, num_bytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and take them within a context; never more than there are."""
        with self._changed:
            taken = min(num_bytes, self._all)
            self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()


def measure(overrides: Sequence[str], cases: Sequence[Case]) -> dict[str, object]:
    """Measure each case compiled and eager, a process each and as many side by side as fit; print and return it all."""
    jobs = {(case, kind): _job(case, kind, overrides) for kind in ("compiled", "eager") for case in cases}
    device = one_size.look_at_device(next(iter(jobs.values())))
    if device.name == "cpu":
        raise InputError(
            "--check: there is no GPU here, or device=cpu; the memory of a process on a CPU is more than its tensors'."
        )
    memory = _Memory(_USABLE * device.free_bytes)
    print(f"{device.name}, {size_text(device.free_bytes)} free", flush=True)
    _print_row(*_HEADS)

    def run(case: Case, job: Job) -> Row | None:
        with memory.reserved(job.estimate(case.batch_size)):
            return one_size.measure(job, case.batch_size)

    rows: list[dict[str, object]] = []
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        keys = {pool.submit(run, case, job): (case, kind) for (case, kind), job in jobs.items()}
        for future in as_completed(keys):
            case, kind = keys[future]
            rows.append(_compared(case, kind, jobs[case, kind], future))
    return {"benchmark": "memory estimate", "device": device.name, "cases": rows}


def _job(case: Case, kind: str, overrides: Sequence[str]) -> Job:
    own = (f"compile={str(kind == 'compiled').lower()}",)
    return Job(
        str(_CONFIGS / f"{case.config}.yaml"),
        (*case.overrides, *overrides, *own),
        one_size.shape(case.seq_len, case.vocab_size),
        num_turns=1,
    )


def _compared(case: Case, kind: str, job: Job, future: "Future[Row | None]") -> dict[str, object]:
    """Print the row of a case, and return it with the parts of its estimate."""
    parts = job.estimated_parts(case.batch_size)
    estimate = sum(parts.values())
    result: dict[str, object] = {
        "config": case.config, "batch_size": case.batch_size, "seq_len": case.seq_len, "kind": kind,
        "estimated_bytes": estimate, "parts": parts,
    }  # fmt: skip
    cells = (case.config, f"{case.batch_size} x {case.seq_len}", kind)
    try:
        row = future.result()
    except InputError as error:
        _print_row(*cells, "failed", size_text(estimate), "")
        return {**result, "error": str(error)}
    if row is None:
        _print_row(*cells, "too much", size_text(estimate), "")
        return result
    ratio = row.peak_bytes / estimate
    _print_row(*cells, size_text(row.peak_bytes), size_text(estimate), f"{ratio:.3f}")
    return {**result, "measured_bytes": row.peak_bytes, "measured_by_estimated": round(ratio, 4)}


def _print_row(*cells: str) -> None:
    print("".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)), flush=True)
