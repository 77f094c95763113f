"""Time the kernels that a training step on a GPU may be made of: python -m tools.bench_kernels [PART ...].

Each part prints as it goes and survives the failure of others. Medians, in microseconds, of `triton.testing.do_bench`,
which clears the cache between runs; errors are the largest, relative to the largest exact value.
  attention  torch's kernels, forward and forward with backward, at Sudoku's and ARC's sizes
  packed     attention of 96 sequences of a dataset of ARC (--data DIR), without padding and with it
  gate_up    SiLU x up within its product beside the compiled plain path
  positions  TRM's MLP over 97 positions: as a GPU computes it, padded, and as a CPU computes it; fused without gradient
  level      updates without gradient of a level at Sudoku's size, with and without kernels of our own
  lm_head    a vocabulary of 11 beside one padded to 16
"""

import argparse
import functools
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from data_pipeline.base.paths import path_argument
from data_pipeline.schema import load_dataset_info

_BF16 = torch.bfloat16
_SPEED = "TFLOP/s"


def _time(function: Callable[[], object]) -> float:
    """Return the median in microseconds; on a CPU, where only the script is tried, of one call."""
    if not torch.cuda.is_available():
        function()
        began = time.perf_counter()
        function()
        return (time.perf_counter() - began) * 1e6
    from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

    median: Any = do_bench(function, warmup=20, rep=80, return_mode="median")
    return 1e3 * median


class _Bench:
    def __init__(self, device: torch.device, scale: int, data: Path | None) -> None:
        """scale: by what batches are divided; data: a dataset, where a part needs one."""
        self.device, self.scale, self.data = device, scale, data

    def randn(self, *shape: int, dtype: torch.dtype = _BF16, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=self.device) * std).to(dtype)

    def attention(self) -> Iterator[str]:
        kernels = {
            "auto": None,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
        for size, seq_len in ((384, 82), (96, 82), (96, 901), (96, 916)):
            size = -(-size // self.scale)
            # As the projection leaves them: heads beside each other, q and k rotated into a tensor of their own.
            qk, v = self.randn(size, seq_len, 16, 64), self.randn(size, seq_len, 24, 64)[:, :, 16:]
            q, k, v = (t.transpose(1, 2) for t in (*qk.chunk(2, 2), v))
            gradient = self.randn(size, seq_len, 8, 64).transpose(1, 2)
            for name, backend in kernels.items():
                try:
                    yield self._attention(name, backend, (q, k, v), gradient)
                except Exception as error:
                    yield f"{name} at {tuple(q.shape)}: {type(error).__name__}: {str(error)[:80]}"

    def _attention(
        self, name: str, backend: SDPBackend | None, qkv: tuple[Tensor, ...], gradient: Tensor
    ) -> str:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if backend is None:
                return F.scaled_dot_product_attention(q, k, v)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return self._with_gradient(f"{name} at {tuple(qkv[0].shape)}", attend, qkv, gradient)

    def _with_gradient(
        self, what: str, attend: Callable[..., Tensor], qkv: tuple[Tensor, ...], gradient: Tensor
    ) -> str:
        inputs = [t.detach().requires_grad_() for t in qkv]
        with torch.no_grad():
            alone = _time(lambda: attend(*inputs))
        forward = _time(lambda: attend(*inputs))
        both = _time(lambda: torch.autograd.grad(attend(*inputs), inputs, gradient))
        return f"{what}: {alone:.0f}, with gradient {forward:.0f}, with backward {both:.0f}"

    def packed(self) -> Iterator[str]:
        from hrm_dist.config import TrainConfig
        from hrm_dist.model.packed_attention import packed_attention
        from hrm_dist.model.packing import pack_rows
        from hrm_dist.packed_sizes import row_numbers, training_lengths

        if self.data is None:
            yield "left out: give --data DIR"
            return
        size = -(-96 // self.scale)
        config = TrainConfig(data_path=str(self.data), padding="skip", global_batch_size=size)
        lengths = training_lengths(config)
        assert lengths is not None
        longest = config.arch.prefix_len + load_dataset_info(self.data).seq_len
        own = torch.from_numpy(lengths[:size]).to(self.device)
        needed = int(own.sum())
        numbers = [*row_numbers(lengths, size, longest), size * longest]
        num_rows = next(number for number in numbers if number >= needed)
        packing = pack_rows(torch.arange(longest, device=self.device) < own[:, None], num_rows)
        operations = float((own.double() ** 2).sum()) / (size * longest**2)
        yield (
            f"{size} sequences, {needed:,} positions in {num_rows:,} rows of {size * longest:,}, {operations:.1%} of "
            "the operations"
        )
        qk, v = self.randn(num_rows, 16, 64), self.randn(num_rows, 24, 64)[:, 16:]
        qkv, gradient = (*qk.chunk(2, 1), v), self.randn(num_rows, 8, 64)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return packed_attention(q, k, v, packing)

        def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return cast(Tensor, varlen_attn(q, k, v, packing.begins, packing.begins, longest, longest))

        ways = {"packed": attend, "packed, compiled": torch.compile(attend, dynamic=False)}
        if self.device.type == "cuda":
            ways["varlen_attn alone"] = alone
        for name, way in ways.items():
            try:
                yield self._with_gradient(name, way, qkv, gradient)
            except Exception as error:
                yield f"{name}: {type(error).__name__}: {str(error)[:200]}"
        qk, v = self.randn(size, longest, 16, 64), self.randn(size, longest, 24, 64)[:, :, 16:]
        q, k, v = (t.transpose(1, 2) for t in (*qk.chunk(2, 2), v))
        gradient = self.randn(size, longest, 8, 64).transpose(1, 2)
        backend = SDPBackend.CUDNN_ATTENTION if self.device.type == "cuda" else None
        yield self._attention("with padding", backend, (q, k, v), gradient)

    def gate_up(self) -> Iterator[str]:
        width, inner = 1536, 512
        plain = torch.compile(_plain_gate_up, dynamic=False)
        for rows in (7872, 31488, 87936):
            rows = -(-rows // self.scale)
            x, weight = self.randn(rows, inner), self.randn(2 * width, inner, std=inner**-0.5)
            flops = 4 * rows * inner * width
            yield from self._compare(
                f"M={rows}",
                flops,
                _plain_gate_up(x.float(), weight.float()),
                product=lambda x=x, weight=weight: F.linear(x, weight),
                compiled=lambda x=x, weight=weight: plain(x, weight),
                fused=lambda x=x, weight=weight: torch.ops.hrm_dist.silu_gate_up(x, weight),
            )
            if self.device.type == "cuda":
                from hrm_dist.model.kernels import gate_up

                yield f"  chosen: {gate_up.tuned_rows_kernel.best_config}"

    def positions(self) -> Iterator[str]:
        from hrm_dist.model.layers import _PositionProduct

        size, seq_len, hidden_size, width = -(-768 // self.scale), 97, 512, 512
        x = self.randn(size, seq_len, hidden_size)
        up, down = self.randn(2 * width, seq_len, std=0.1), self.randn(seq_len, width, std=0.04)
        flops = 6 * size * seq_len * hidden_size * width
        exact = _mixed(x.float(), up.float(), down.float(), _by_torch)
        ways = {"transposed": _by_torch, "padded": _padded, "rows of channels": _PositionProduct.apply}
        for name, product in ways.items():
            for with_gradient in (False,) if product is _by_torch else (False, True):
                inputs = [t.detach().float().requires_grad_(with_gradient) for t in (up, down)]
                own = x.detach().requires_grad_(with_gradient)
                mixed = torch.compile(_mixed, dynamic=False)
                run = functools.partial(mixed, own, *inputs, product)
                step: Callable[[], object] = run
                if with_gradient:
                    gradient = self.randn(*x.shape)
                    step = lambda run=run, of=[own, *inputs], g=gradient: torch.autograd.grad(run(), of, g)  # noqa: E731
                try:
                    began = time.perf_counter()
                    error = _error(run(), exact)
                    step()
                    yield (
                        f"{name}, {'forward and backward' if with_gradient else 'without gradient'}: "
                        f"{_rate(_time(step), flops * (3 if with_gradient else 1))}, error {error:.1e} "
                        f"(first call {time.perf_counter() - began:.0f} s)"
                    )
                except Exception as failure:
                    yield f"{name}: {type(failure).__name__}: {str(failure)[-600:]}"
        weight = up.t().contiguous()
        yield from self._compare(
            "gate and up alone",
            flops * 2 // 3,
            _plain_gate_up(x.float().transpose(1, 2), up.float()).transpose(1, 2),
            product=lambda: torch.bmm(weight.t().expand(size, -1, -1), x),
            compiled=lambda: _compiled_over_positions(x, weight),
            fused=lambda: torch.ops.hrm_dist.silu_gate_up_over_positions(x, weight),
        )
        if self.device.type == "cuda":
            from hrm_dist.model.kernels import gate_up

            yield f"  chosen: {gate_up.tuned_positions_kernel.best_config}"

    def level(self) -> Iterator[str]:
        """Updates without gradient of a level of HRM 27 M, with and without kernels of our own."""
        from hrm_dist.config import ArchConfig
        from hrm_dist.model.attention_kernel import use_attention_kernel
        from hrm_dist.model.initialization import initialize
        from hrm_dist.model.kernels import use_fused_swiglu
        from hrm_dist.model.layers import Level, Positions, rope_tables

        arch, size, seq_len = ArchConfig(), -(-384 // self.scale), 82
        x = self.randn(size, seq_len, 512)
        positions = Positions(rope_tables(seq_len, 64, 1e4, self.device))
        flops = 0
        for choice in ("off", "auto"):
            level = Level(arch, arch.L_layers, seq_len)
            initialize(level, seed=0)
            use_attention_kernel(level, "auto", arch, seq_len, self.device)
            use_fused_swiglu(level, choice, _BF16, self.device)
            level.to(self.device).compile(fullgraph=True, dynamic=False)
            flops = size * sum(block.flops(seq_len) for block in level.blocks())
            began = time.perf_counter()
            with torch.no_grad():
                level(x, positions, x)
                first = time.perf_counter() - began
                spent = _time(lambda level=level: level(x, positions, x))
            yield f"fused_swiglu={choice}: {_rate(spent, flops)} (first call {first:.0f} s)"

    def lm_head(self) -> Iterator[str]:
        rows = -(-384 * 81 // self.scale)
        x = self.randn(rows, 512)
        for vocabulary in (11, 12, 16):
            weight = self.randn(vocabulary, 512).requires_grad_()
            inputs = [x.detach().requires_grad_(), weight]
            gradient = self.randn(rows, vocabulary)
            both = _time(lambda i=inputs, g=gradient: torch.autograd.grad(F.linear(*i), i, g))
            yield f"vocabulary of {vocabulary}: {both:.0f} forward and backward"

    def _compare(self, what: str, flops: int, exact: Tensor, **ways: Callable[[], Tensor]) -> Iterator[str]:
        for name, function in ways.items():
            try:
                began = time.perf_counter()
                result = function()
                error = f", error {_error(result, exact):.1e}" if result.shape == exact.shape else ""
                first = time.perf_counter() - began
                yield f"{what} {name}: {_rate(_time(function), flops)}{error} (first call {first:.0f} s)"
            except Exception as failure:
                yield f"{what} {name}: {type(failure).__name__}: {str(failure)[-600:]}"


def _rate(microseconds: float, flops: int) -> str:
    return f"{microseconds:.0f} us, {flops / microseconds / 1e6:.0f} {_SPEED}"


def _error(result: Tensor, exact: Tensor) -> float:
    return ((result.float() - exact).abs().max() / exact.abs().max()).item()


def _plain_gate_up(x: Tensor, weight: Tensor) -> Tensor:
    gate, up = F.linear(x, weight).chunk(2, -1)
    return F.silu(gate) * up


@torch.compile
def _compiled_over_positions(x: Tensor, weight: Tensor) -> Tensor:
    gate, up = torch.bmm(weight.t().expand(len(x), -1, -1), x).chunk(2, 1)
    return F.silu(gate) * up


def _by_torch(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x.transpose(1, 2), weight.to(x.dtype)).transpose(1, 2)


def _padded(weight: Tensor, x: Tensor) -> Tensor:
    missing = -x.shape[1] % 8
    weight = F.pad(weight.to(x.dtype), (0, missing))
    return torch.bmm(weight.expand(len(x), -1, -1), F.pad(x, (0, 0, 0, missing)))


def _mixed(x: Tensor, up: Tensor, down: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return TRM's block of positions: MLP, residual and norm."""
    from hrm_dist.model.layers import rms_norm, rms_norm_over_positions

    gate, up = product(up, x).chunk(2, 1)
    x = x + product(down, F.silu(gate) * up)
    if product is _by_torch:
        return rms_norm(x.transpose(1, 2), 1e-5).transpose(1, 2)
    return rms_norm_over_positions(x, 1e-5)


def main() -> None:
    """Run the parts asked for, or all."""
    parts = ("gate_up", "positions", "attention", "packed", "level", "lm_head")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)} (all)")
    parser.add_argument("--data", type=path_argument, metavar="DIR", help="a dataset, for `packed`")
    options = parser.parse_args()
    asked = options.parts or parts
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = _Bench(device, scale=1 if device.type == "cuda" else 48, data=options.data)
    if device.type == "cuda":
        import hrm_dist.model.kernels.gate_up  # noqa: F401  (registers them)

        print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    for part in asked:
        began = time.perf_counter()
        print(f"\n{part}", flush=True)
        try:
            for line in getattr(bench, part)():
                print(f"  {line}", flush=True)
        except Exception:
            traceback.print_exc()
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
