"""What stands in for the published code's extensions, and what is counted of a step: right where that can be known."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from data_pipeline.base.errors import exit_code
from data_pipeline.schema import IGNORE_LABEL_ID
from hrm_dist import optim
from hrm_dist.distributed.process_group import World
from tests.unit.models import METADATA
from tools.bench_train import __main__ as bench_train
from tools.bench_train.reference import AdamATan2, flash_attn_func, published_batch
from tools.bench_train.speed import RandomReader
from tools.bench_train.step_profile import count, profile_step, time_table

CPU = torch.device("cpu")


@pytest.mark.parametrize("causal", [False, True])
def test_the_attention_is_softmax_attention_over_the_second_dimension(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    scores = torch.einsum("bqnd,bknd->bnqk", q, k) / 2
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v)
    torch.testing.assert_close(flash_attn_func(q=q, k=k, v=v, causal=causal), expected)


numbers = st.one_of(
    st.just(0.0), st.floats(2**-40, 2**10, width=32), st.floats(-(2**10), -(2**-40), width=32)
)


@given(st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=6))
def test_the_optimizer_makes_the_updates_of_ours(history: list[list[float]]) -> None:
    def parameters() -> list[nn.Parameter]:
        return [nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.tensor([-2.0, 0.0, 3.0]))]

    ours, theirs = parameters(), parameters()
    own = optim.AdamATan2(ours, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    stand_in = AdamATan2(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for grads in torch.tensor(history):
        for first, rest in (ours, theirs):
            first.grad, rest.grad = grads[:1].clone(), grads[1:].clone()
        own.step()
        stand_in.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)


def test_the_published_batch_ignores_padding() -> None:
    reader = RandomReader(METADATA, 4, World(0, 1, CPU))
    batch = published_batch(reader.batch(0), METADATA, CPU)
    labels = batch["labels"]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int32}
    assert set(labels.unique().tolist()) == {IGNORE_LABEL_ID, *range(1, METADATA.vocab_size)}
    assert set(batch["inputs"].unique().tolist()) == set(range(METADATA.vocab_size))


@pytest.fixture
def _imports_undone() -> Iterator[None]:
    def of_checkout() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if re.match(r"(models|flash_attn_interface)(\.|$)", name)]
        return {name: sys.modules[name] for name in names}

    before = of_checkout()
    yield
    for name in of_checkout():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.usefixtures("_imports_undone")
def test_files_that_do_not_hold_the_published_code_are_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in bench_train.REFERENCE_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    arguments = ["--reference", str(tmp_path), "device=cpu", "--batch-size", "1", "arch.hidden_size=32"]
    assert exit_code(lambda: bench_train.main(arguments)) == 2
    error = capsys.readouterr().err
    assert f"--reference {tmp_path}: cannot be imported (module 'models.hrm.hrm_act_v1' has no" in error
    assert len(error.splitlines()) == 1


def test_an_operator_counts_once_whatever_it_calls() -> None:
    a = torch.ones(3, 3)
    assert profile_step(lambda: None, CPU).counts == {"host_ops_per_step": 0}
    # aten::matmul, which calls aten::mm
    assert profile_step(lambda: a @ a, CPU).counts == {"host_ops_per_step": 1}
    assert profile_step(lambda: (a @ a).sum(), CPU).counts == {"host_ops_per_step": 2}


def test_what_a_backward_calls_counts_and_its_nodes_do_not() -> None:
    a = torch.ones(3, 3, requires_grad=True)
    loss = a.square().sum()
    a.grad = torch.zeros(3, 3)
    # ones_like of the loss, expand for its sum, pow and two mul for the square, add_ to the gradient
    assert profile_step(loss.backward, CPU).counts == {"host_ops_per_step": 6}


def event(name: str, start: int, end: int) -> FunctionEvent:
    return FunctionEvent(id=start, name=name, thread=1, start_us=start, end_us=end)


def test_launches_count_as_operations_only_where_no_operator_makes_them() -> None:
    graph = event("## Call CompiledFxGraph f123 ##", 0, 50)
    product, of_product = event("aten::mm", 1, 9), event("cudaLaunchKernelExC", 2, 3)
    kernel, second = event("cuLaunchKernel", 10, 12), event("cuLaunchKernelEx", 13, 14)
    replay, copy = event("cudaGraphLaunch", 60, 70), event("cudaMemcpyAsync", 71, 72)
    of_product.cpu_parent = product
    for inner in (product, kernel, second):
        inner.cpu_parent = graph
    events = [graph, product, of_product, kernel, second, replay, copy]
    assert count(events) == {"host_ops_per_step": 5, "kernel_launches_per_step": 4}


def test_on_a_gpu_its_kernels_are_listed_and_operators_are_not() -> None:
    def kernel(name: str, start: int, end: int) -> FunctionEvent:
        return FunctionEvent(start, name, 1, start, end, device_type=DeviceType.CUDA)

    events = [event("aten::mm", 0, 9), kernel("gemm", 2, 4_002), kernel("add", 5_000, 6_000)]
    events.append(kernel("gemm", 7_000, 11_000))
    lines = time_table(events, on_gpu=True).splitlines()
    assert [line.split() for line in lines] == [
        ["ms", "calls", "kernels"],
        ["9.00", "3", "all"],
        ["8.00", "2", "gemm"],
        ["1.00", "1", "add"],
    ]
