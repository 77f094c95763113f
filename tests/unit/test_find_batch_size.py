"""tools.find_batch_size: it finds what fits, says what it measured, and refuses bad input in one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.base.errors import InputError, exit_code
from hrm_dist.config import load_config
from tools.find_batch_size import __main__ as find_batch_size
from tools.find_batch_size import check, one_size
from tools.find_batch_size.one_size import Device, Job, Row
from tools.find_batch_size.search import find_largest, first_size, micro_batches

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = (
    "arch.hidden_size=32 arch.num_heads=2 arch.H_layers=1 arch.L_layers=1 precision=fp32 device=cpu".split()
)
JOB = Job(str(CONFIGS / "sudoku_extreme_1k.yaml"), (), one_size.shape(81, 11))


def row_of(size: int) -> Row:
    return Row(size, peak_bytes=size, seconds=1.0)


@given(st.integers(1, 5000), st.integers(1, 700), st.none() | st.integers(1, 6000))
def test_the_largest_size_is_found_to_within_8_or_3_percent(
    limit: int, eighths: int, most: int | None
) -> None:
    tried: list[int] = []

    def try_size(size: int) -> Row | None:
        tried.append(size)
        return row_of(size) if size <= limit else None

    found = find_largest(try_size, 8 * eighths, most)
    best = limit if most is None else min(limit, most)
    assert found is not None
    assert found.batch_size <= best
    assert best - found.batch_size < (max(8, found.batch_size / 32) if best >= 8 else 1)
    assert len(tried) == len(set(tried))
    assert all(size % 8 == 0 or size < 8 or size == most for size in tried)


def test_nothing_is_found_where_not_even_one_sequence_fits() -> None:
    assert find_largest(lambda size: None, 64, None) is None


def test_the_first_size_is_a_quarter_of_what_the_estimate_lets_fit() -> None:
    device = Device("some GPU", free_bytes=80 * 10**9, num_devices=1)
    first = first_size(JOB, device)
    assert JOB.estimate(4 * first) < 0.9 * device.free_bytes < JOB.estimate(4 * (first + 8))


def test_micro_batches_are_as_few_as_fit_where_the_largest_size_does() -> None:
    config = load_config(JOB.config, ["global_batch_size=1024"])
    assert micro_batches(JOB, config, row_of(1024), num_processes=1) == 1
    # The carry of 1024 sequences, and gradients that stay, take room that 512 at a time would need.
    assert micro_batches(JOB, config, row_of(512), num_processes=1) == 4
    assert micro_batches(JOB, config, row_of(544), num_processes=2) == 1
    assert micro_batches(JOB, config, row_of(8), num_processes=1) is None


@pytest.mark.parametrize(
    "program",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "print('null')",
    ],
    ids=["killed by the system", "refused by the allocator"],
)
def test_a_process_that_runs_out_of_memory_is_no_error(program: str) -> None:
    assert one_size.finish(python(program)) is None


def test_a_process_that_fails_otherwise_is_one_line() -> None:
    with pytest.raises(InputError, match=r"not for want of memory: ValueError: bad$"):
        one_size.finish(python("raise ValueError('bad')"))


def python(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True)


def test_memory_that_ran_out_is_told_from_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_to(error: Exception) -> object:
        def fail(job: Job, batch_size: int) -> Row:
            raise error

        monkeypatch.setattr(one_size, "_train", fail)
        return one_size.answer(JOB, 8)

    assert answer_to(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) is None
    assert answer_to(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")) is None
    with pytest.raises(RuntimeError, match="shape"):
        answer_to(RuntimeError("shape mismatch"))


def test_sizes_up_to_the_given_one_are_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_size, "look_at_device", lambda job: Device("cpu", 10**10, 1))
    sizes = "--seq-len 9 --vocab-size 5 --max-batch-size 16".split()
    assert find_batch_size.main([JOB.config, *TINY, "global_batch_size=16", *sizes]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert [row["batch_size"] for row in result["sizes"]] == [8, 16]
    assert result["largest"] == 16
    assert result["gradient_accumulation_steps"] == {"1": 1}
    assert all(row["peak_bytes"] > 0 and row["examples_per_s"] > 0 for row in result["sizes"])
    assert "largest that fits: 16 (the largest to try)" in table


def test_the_check_compares_each_case_compiled_and_eager(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_size, "look_at_device", lambda job: Device("some GPU", 10**10, 1))
    monkeypatch.setattr(one_size, "measure", lambda job, size: row_of(job.estimate(size)))
    result = check.measure(["device=cpu"], check.CASES)
    cases = result["cases"]
    assert isinstance(cases, list)
    assert len(cases) == 2 * len(check.CASES)
    assert all(case["measured_by_estimated"] == 1 for case in cases)
    assert capsys.readouterr().out.count("1.000") == len(cases)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiles", ["true", "false"])
def test_the_estimate_is_within_a_tenth_of_the_peak_on_a_gpu(compiles: str) -> None:
    job = JOB._replace(overrides=(f"compile={compiles}",))
    row = one_size.measure(job, 192)
    assert row is not None
    assert job.estimate(192) == pytest.approx(row.peak_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give one configuration"),
        ("a.yaml b.yaml", "a.yaml b.yaml: give one configuration"),
        ("no-such-file.yaml", "no-such-file.yaml: cannot be read"),
        ("configs/arc1.yaml arch.gradiant=bptt", "did you mean 'arch.gradient'?"),
        ("configs/arc1.yaml --seq-len 9", "--vocab-size is missing"),
        ("configs/arc1.yaml device=cpu --seq-len 9 --vocab-size 5", "--max-batch-size 64"),
        ("configs/arc1.yaml --check", "leave one of them out"),
        ("--check device=cpu", "there is no GPU here"),
    ],
)
def test_what_cannot_be_measured_is_one_message_and_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert exit_code(lambda: find_batch_size.main(arguments.split())) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_where_padding_is_skipped_batches_of_the_dataset_are_measured(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_size, "look_at_device", lambda job: Device("cpu", 10**10, 1))
    assert find_batch_size.main([str(config), "padding=skip", "device=cpu", "--max-batch-size", "8"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["largest"], result["seq_len"]) == (8, 36)


def test_the_estimate_follows_how_long_sequences_are_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(length: int) -> int:
        monkeypatch.setattr(one_size, "_lengths", lambda *_: np.full(100, length))
        return Job(str(CONFIGS / "arc1.yaml"), ("padding=skip",), one_size.shape(900, 12)).estimate(384)

    assert estimate(225) < 0.5 * estimate(900)


@pytest.mark.parametrize("arguments", [["--check"], [JOB.config, "--seq-len", "9", "--vocab-size", "5"]])
def test_skipped_padding_of_random_tokens_is_refused(arguments: list[str]) -> None:
    with pytest.raises(InputError, match="padding=skip"):
        find_batch_size.main([*arguments, "padding=skip"])
