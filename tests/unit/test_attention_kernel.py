"""Attention by one kernel: which is chosen, and that compiled graphs hold it with and without gradient."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from hrm_dist.config import ConfigError
from hrm_dist.model.attention_kernel import attention_kernel, describe_attention, use_attention_kernel
from hrm_dist.model.initialization import initialize
from hrm_dist.model.layers import Level, Positions, checkpoint_activations, rope_tables
from tests.unit.models import arch_of

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SEQ_LEN = 9
OPERATIONS = {
    "math": "_safe_softmax",
    "flash": "_scaled_dot_product_flash_attention",
    "cudnn": "_scaled_dot_product_cudnn_attention",
}


def level_with(kernel: str, device: torch.device, dtype: str = "float32") -> Level:
    arch = arch_of("hrm", forward_dtype=dtype)
    level = Level(arch, 1, SEQ_LEN)
    initialize(level, seed=0)
    use_attention_kernel(level, kernel, arch, SEQ_LEN, device)
    return level.to(device)


def run(level: Level, x_BSD: Tensor) -> Tensor:
    return level(x_BSD, Positions(rope_tables(SEQ_LEN, 16, 1e4, x_BSD.device)))


def compiled_attention(level: Level, x_BSD: Tensor) -> list[str]:
    """Return the operation of attention in the graph without gradient and in the forward graph with it."""
    forwards: list[str] = []

    def note(graph: torch.fx.GraphModule, _: object) -> object:
        # What is recomputed is called by an operation that keeps the random state, with it as an argument.
        called = [str(target) for node in graph.graph.nodes for target in (node.target, *node.args)]
        forwards.extend(
            name for name in OPERATIONS.values() if any(f"aten.{name}" in call for call in called)
        )
        return make_boxed_func(graph.forward)

    def leave(graph: torch.fx.GraphModule, _: object) -> object:
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    level.compile(fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=leave))
    with torch.no_grad():
        run(level, x_BSD)
    run(level, x_BSD).sum().backward()
    return forwards


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_a_compiled_level_holds_the_kernel_with_and_without_gradient(kernel: str, recomputed: bool) -> None:
    level = level_with(kernel, CPU)
    if recomputed:
        checkpoint_activations(level)
    without, with_gradient = compiled_attention(level, torch.randn(2, SEQ_LEN, 32))
    assert without == with_gradient == OPERATIONS[kernel]


def test_every_kernel_computes_the_same() -> None:
    x = torch.randn(2, SEQ_LEN, 32, generator=torch.Generator().manual_seed(0))
    expected = run(level_with("auto", CPU), x)
    for kernel in ("math", "flash"):
        torch.testing.assert_close(run(level_with(kernel, CPU), x), expected)


def test_a_cpu_is_left_to_choose_by_itself() -> None:
    assert attention_kernel("auto", arch_of("hrm"), SEQ_LEN, CPU) is None
    assert level_with("auto", CPU).blocks()[0].self_attn.kernel is None


def test_a_network_without_attention_has_no_kernel() -> None:
    assert attention_kernel("cudnn", arch_of("trm", mlp_t=True), SEQ_LEN, CPU) is None


def test_a_kernel_that_cannot_run_is_refused_where_the_model_is_built() -> None:
    with pytest.raises(ConfigError, match=r"attention=cudnn: .* take one of flash, math$"):
        level_with("cudnn", CPU)


def test_without_a_gpu_here_the_dry_run_says_what_one_would_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    auto = describe_attention("auto", arch_of("hrm"), SEQ_LEN, "auto")
    assert "cudnn > flash > efficient > math" in auto
    assert describe_attention("flash", arch_of("hrm"), SEQ_LEN, "cuda") == "flash"
    assert "torch's own" in describe_attention("auto", arch_of("hrm"), SEQ_LEN, "cpu")


@pytest.mark.gpu
@needs_gpu
def test_from_hopper_on_cudnn_computes_attention_in_bfloat16() -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a Hopper GPU")
    level = level_with("auto", torch.device("cuda"), "bfloat16")
    x = torch.randn(2, SEQ_LEN, 32, device="cuda", dtype=torch.bfloat16)
    without, with_gradient = compiled_attention(level, x)
    assert without == with_gradient == OPERATIONS["cudnn"]


@pytest.mark.gpu
@needs_gpu
def test_flash_is_refused_in_float32_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r"attention=flash: .*float32"):
        level_with("flash", torch.device("cuda"))
