"""The product over the positions as a GPU computes it: F.linear's numbers, from rows never at odd addresses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hrm_dist.model.layers import _PositionProduct

ODD, EVEN = 97, 96


def by_torch(weight: Tensor, x_BSD: Tensor) -> Tensor:
    return F.linear(x_BSD.transpose(1, 2), weight.to(x_BSD.dtype)).transpose(1, 2)


def outcome(
    product: Callable[[Tensor, Tensor], Tensor], seq_len: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return result, gradient of the weight and gradient of the input."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, seq_len, generator=generator, dtype=dtype).requires_grad_()
    x_BSD = torch.randn(5, seq_len, 16, generator=generator, dtype=dtype).requires_grad_()
    y_BRD = product(weight, x_BSD)
    (y_BRD * torch.randn(y_BRD.shape, generator=generator, dtype=dtype)).sum().backward()
    assert weight.grad is not None
    assert x_BSD.grad is not None
    return [y_BRD.detach(), weight.grad, x_BSD.grad]


@pytest.mark.parametrize("seq_len", [ODD, EVEN])
def test_result_and_gradients_are_those_of_a_linear_map(seq_len: int) -> None:
    for ours, expected in zip(
        outcome(_PositionProduct.apply, seq_len), outcome(by_torch, seq_len), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_the_gradient_of_a_weight_is_summed_in_its_own_dtype() -> None:
    weight = torch.ones(1, ODD, requires_grad=True)
    # Each sequence adds 1 to a gradient of 256, which bfloat16 would round away.
    x_BSD = torch.cat([torch.full((1, ODD, 1), 256.0), torch.ones(3, ODD, 1)]).to(torch.bfloat16)
    _PositionProduct.apply(weight, x_BSD).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((1, ODD), 259.0))


class _Strides(TorchDispatchMode):
    """Note by how many numbers the rows of the matrices in products are apart."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default:
            for matrix in (*args, result):
                across, along = sorted(matrix.stride()[1:], reverse=True)
                assert along == 1
                self.seen.append(across)
        return result


@pytest.mark.parametrize(("num_rows", "seq_len"), [(EVEN, ODD), (ODD, EVEN)])  # up and down
def test_no_product_has_rows_at_odd_addresses(num_rows: int, seq_len: int) -> None:
    weight = torch.randn(num_rows, seq_len, requires_grad=True)
    x_BSD = torch.randn(2, seq_len, 16, requires_grad=True)
    with _Strides() as strides:
        y_BRD: Tensor = _PositionProduct.apply(weight, x_BSD)
        y_BRD.backward(torch.ones_like(y_BRD))
    assert len(strides.seen) == 9
    assert all(stride % 8 == 0 for stride in strides.seen)
