"""tools.bench_evaluate: what it measures is right where that can be known."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.base.errors import exit_code
from hrm_dist.evaluation.segment import EvaluationSegment
from hrm_dist.model import build_model
from hrm_dist.model.flops import evaluation_flops_per_sequence
from tests.unit.models import METADATA, arch_of
from tools import bench_evaluate

TINY = (
    "arch.hidden_size=32 arch.num_heads=2 arch.H_layers=1 arch.L_layers=1 precision=fp32 device=cpu "
    "--batch-size 4 --seq-len 9 --steps 3"
).split()


def test_a_segment_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_evaluate.main(TINY) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    eager = result["eager"]
    assert (result["steps"], result["batch_size"], result["seq_len"]) == (3, 4, 9)
    assert eager["inputs_per_s"] == pytest.approx(4 / 16 / eager["seconds_per_segment"], rel=0.1)
    assert 0 < eager["share_of_measured_matmul_rate"] < 1
    assert "compiled" not in result


@pytest.mark.parametrize("name", ["hrm", "trm", "transformer"])
def test_the_operations_of_a_segment_are_those_that_torch_counts(name: str) -> None:
    arch = arch_of(name)
    segment = EvaluationSegment(build_model(arch, METADATA).eval(), 3, torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        segment()
    q_head = 3 * 2 * 2 * arch.hidden_size  # which is left out
    assert counter.get_total_flops() - q_head == 3 * evaluation_flops_per_sequence(arch, METADATA)


def test_a_setting_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: bench_evaluate.main(["arch.gradiant=bptt"])) == 2
    assert "did you mean 'arch.gradient'?" in capsys.readouterr().err
