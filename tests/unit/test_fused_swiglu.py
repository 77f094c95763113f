"""SiLU x up within its product: equal to the plain path, and taken only where no gradient is recorded."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import NumpyVersion
from torch import Tensor, nn

from hrm_dist.config import ConfigError
from hrm_dist.model.initialization import initialize
from hrm_dist.model.kernels import require_c_compiler, use_fused_swiglu
from hrm_dist.model.layers import GateUp, PositionGateUp

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

# Runs in a process of its own, as Triton reads the variable when it is imported; in float16, as the interpreter's
# products know no bfloat16. All sizes but I are no multiples of the blocks.
INTERPRETED = """
import torch
from triton.tools.tensor_descriptor import TensorDescriptor
from hrm_dist.model.kernels import gate_up as kernels
from tests.unit.test_fused_swiglu import plain

generator = torch.Generator().manual_seed(0)

def compare(kernel, x, weight, out, expected, blocks, sizes):
    described = [TensorDescriptor.from_tensor(t, b) for t, b in zip((x, weight, out), blocks, strict=True)]
    kernel[(3,)](*described, *sizes)
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=2e-3)

for num_rows in (70, 64, 300):
    x, weight = (torch.randn(rows, 40, generator=generator).half() for rows in (num_rows, 128))
    blocks = ([32, 16], [2, 32, 16], [32, 32])
    out, expected = torch.empty(num_rows, 64).half(), plain(x, weight, -1)
    compare(kernels.rows_kernel, x, weight.view(2, 64, 40), out, expected, blocks, (num_rows, 40, 64, 1, 32, 32, 16, 2))
x, weight = torch.randn(3, 19, 48, generator=generator).half(), torch.randn(19, 128, generator=generator).half()
blocks = ([1, 16, 32], [16, 32], [1, 32, 32])
out, expected = torch.empty(3, 64, 48).half(), plain(x.transpose(1, 2), weight.t(), -1).transpose(1, 2)
compare(kernels.positions_kernel, x, weight, out, expected, blocks, (3, 19, 48, 64, 1, 32, 32, 16))
"""


def plain(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    gate, up = torch.nn.functional.linear(x, weight).float().chunk(2, dim)
    return (nn.functional.silu(gate) * up).to(x.dtype)


@needs_triton
@pytest.mark.skipif(
    NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton's interpreter takes arrays of one number for numbers",
)
def test_the_kernels_equal_the_plain_path_in_the_interpreter() -> None:
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def gate_up(kind: type[GateUp | PositionGateUp], in_size: int, width: int, choice: str) -> nn.Module:
    module = kind(in_size, 2 * width)
    initialize(module, seed=0)
    use_fused_swiglu(module, choice, torch.bfloat16, torch.device("cuda"))
    return module.cuda()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("kind", "in_size", "width", "shape"),
    [
        (GateUp, 512, 1536, (7, 83, 512)),
        (GateUp, 64, 256, (1, 3, 64)),
        (GateUp, 512, 1536, (96, 916, 512)),
        (PositionGateUp, 97, 512, (5, 97, 512)),
        (PositionGateUp, 32, 256, (3, 32, 72)),
    ],
)
def test_fused_and_plain_lie_equally_far_from_float64(
    kind: type[GateUp | PositionGateUp], in_size: int, width: int, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, device="cuda").to(torch.bfloat16)
    fused, other = (gate_up(kind, in_size, width, choice) for choice in ("on", "off"))
    exact = kind(in_size, 2 * width)
    exact.load_state_dict(fused.state_dict())
    exact.to("cuda", torch.float64)
    with torch.no_grad():
        expected = exact(x.double())
        errors = [(module(x).double() - expected).abs().max().item() for module in (fused, other)]
    # The kernel rounds only the outcome to 8 bits; the plain path gate, up and the activated gate before.
    assert errors[0] <= 1.1 * errors[1]


@pytest.mark.gpu
@needs_gpu
def test_with_gradient_the_plain_path_is_taken() -> None:
    fused, other = (gate_up(GateUp, 64, 256, choice) for choice in ("on", "off"))
    x = torch.randn(3, 64, device="cuda").to(torch.bfloat16)
    assert torch.equal(fused(x), other(x))
    fused(x).sum().backward()


def test_a_cpu_takes_the_plain_path() -> None:
    module = GateUp(8, 16)
    use_fused_swiglu(module, "auto", torch.bfloat16, torch.device("cpu"))
    assert not module.is_fused


def test_where_it_cannot_run_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fused_swiglu=on: .* no GPU of Hopper"):
        use_fused_swiglu(GateUp(8, 16), "on", torch.bfloat16, torch.device("cpu"))


def test_without_a_c_compiler_compiling_for_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "nowhere")
    monkeypatch.setenv("PATH", "")
    require_c_compiler(torch.device("cpu"), "set compile=false")
    with pytest.raises(ConfigError, match=r"no gcc, no clang(.|\n)*or set compile=false"):
        require_c_compiler(torch.device("cuda"), "set compile=false")
    monkeypatch.setenv("CC", sys.executable)
    require_c_compiler(torch.device("cuda"), "set compile=false")
