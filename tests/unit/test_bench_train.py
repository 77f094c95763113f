"""tools.bench_train: what it measures is right where that can be known, and bad input is refused."""

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.base.errors import exit_code
from hrm_dist.model import build_model
from tests.unit.models import METADATA, arch_of, random_batch
from tools.bench_train import __main__ as bench_train
from tools.bench_train.activation_memory import CYCLES, LiveBytes, peak_activation_bytes

TINY = (
    "arch.hidden_size=32 arch.num_heads=2 arch.H_layers=1 arch.L_layers=1 precision=fp32 device=cpu "
    "--batch-size 4 --seq-len 9"
).split()


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert bench_train.main([*TINY, *arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_step_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    result = printed(capsys, "--steps", "3", "arch.gradient=bptt", "activation_checkpointing=true")
    eager = result["eager"]
    assert isinstance(eager, dict)
    assert eager["seconds_per_step"] > 0
    assert eager["examples_per_s"] == pytest.approx(4 / eager["seconds_per_step"], rel=0.1)
    assert 0 < eager["share_of_measured_matmul_rate"] < 1
    assert eager["host_ops_per_step"] > 100
    assert result["gradient"] == "bptt"
    assert result["activation_checkpointing"] is True


def test_a_profile_names_the_operators_that_take_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_train.main([*TINY, "--steps", "1", "--profile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [head] = [number for number, line in enumerate(lines) if line.split() == ["ms", "calls", "operators"]]
    rows = [line.split(maxsplit=2) for line in lines[head + 1 : -1]]
    times = [float(time) for time, _, _ in rows[1:]]
    assert times == sorted(times, reverse=True)
    assert sum(times) <= float(rows[0][0]) * 1.01
    assert "aten::mm" in [name for _, _, name in rows]


def test_memory_is_measured_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "memory.png"
    result = printed(capsys, "--memory", "--plot", str(picture))
    peaks = result["peak_activation_bytes"]
    assert isinstance(peaks, dict)
    assert len(set(peaks["one_step"])) == 1
    assert result["one_step_spread"] == 0
    assert all(len(sizes) == len(CYCLES) for sizes in peaks.values())
    assert peaks["bptt, recomputed"][-1] < peaks["bptt"][-1] / 5
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_trm_keeps_memory_flat_in_h_cycles_alone() -> None:
    sizes = [
        peak_activation_bytes(build_model(arch_of("trm", **cycles), METADATA), random_batch(2, seed=0))
        for cycles in ({"H_cycles": 1, "L_cycles": 2}, {"H_cycles": 6, "L_cycles": 2}, {"L_cycles": 9})
    ]
    assert sizes[0] * 0.98 < sizes[1] < sizes[0] * 1.02
    assert sizes[2] > 2 * sizes[1]


def test_live_bytes_count_a_storage_once_and_until_it_is_freed() -> None:
    base = torch.zeros(1000)
    with LiveBytes() as live:
        first = base + 1  # 4000 bytes
        first.mul_(2)
        base.add_(1)
        view = first[:10]
        assert live.now == live.peak == 4000
        del first
        assert live.now == 4000  # the view holds it
        second = torch.stack((base, base))
        del second, view
        assert live.now == 0
        assert live.peak == 12_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("no-such-file.yaml", "no-such-file.yaml: cannot be read"),
        ("a.yaml b.yaml", "one configuration at a time"),
        ("arch.gradiant=bptt", "did you mean 'arch.gradient'?"),
        ("arch.gradient=some", "Input should be 'one_step', 'last_cycle' or 'bptt'"),
        ("--plot memory.png", "add --memory"),
        ("--memory --plot memory.txt", "ends in .png"),
        ("--memory --plot nowhere/memory.png", "nowhere is not a folder"),
        ("--memory --compile", "leave one of them out"),
        ("--memory --reference .", "--reference: is about training steps"),
        ("--reference no-such-folder", "no models/hrm/hrm_act_v1.py there; give a checkout of"),
        ("--reference . arch.name=trm", "the published HRM has no arch.name=trm"),
        ("--reference . arch.act_continue=false", "the published HRM has no arch.act_continue=false"),
        ("--reference . arch.puzzle_emb_len=3", "the published HRM has no arch.puzzle_emb_len=3"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: bench_train.main(arguments.split())) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", ["--steps 0", "--batch-size many", "--vocab-size 257", "--unknown"])
def test_a_bad_option_exits_with_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        bench_train.main(arguments.split())
    assert exit_info.value.code == 2
