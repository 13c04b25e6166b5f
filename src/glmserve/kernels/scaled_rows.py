"""Rows in 8-bit floats with scales: what goes into an fp8 matrix product, and what has to be done after one.

The product of many rows is torch._scaled_mm with all scales 1, several times as fast as with scales by row (benchmarks/RESULTS.md); the
scales are applied by whatever reads the product: the LayerNorm (`Summands`), or the passes here, which also add the bias and apply GELU.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, TypeAlias

import torch

from glmserve.kernels.activation import gelu_tanh_of, gelu_tanh_torch, short_gelu_tanh_of
from glmserve.kernels.backend import interpreting, next_power_of_2, tl, triton
from glmserve.kernels.blas_product import lasts, levels_product, serves_blas_product

LARGEST_FP8 = 448.0  # of float8_e4m3fn
TILE = 128  # columns that share a scale where a row has several
_SMALLEST_SCALE = 1e-12  # a row of zeros keeps a scale that can be divided by
_BLOCK = 1024

# How a kernel rounds what it makes: by tiles, or all of it with one scale that is known before, float32 of one number.
Rounding: TypeAlias = Literal["by tile"] | torch.Tensor


class ScaledRows(NamedTuple):
    """values: float8_e4m3fn [rows, width]; scale: float32 [rows], or [rows, width / TILE], one for each tile of columns.

    The numbers are values * scale.  Where all rows have one scale it is that number, expanded, so its stride is 0.
    """

    values: torch.Tensor
    scale: torch.Tensor

    @property
    def by_tile(self) -> bool:
        """Whether each tile has its own scale."""
        return self.scale.dim() == 2

    def numbers(self) -> torch.Tensor:
        """float32 [rows, width]."""
        scale = self.scale.repeat_interleave(TILE, dim=1) if self.by_tile else self.scale[:, None]
        return self.values.float() * scale


class ScaledProduct(NamedTuple):
    """A product of levels with all that is still to be done to it: the numbers are levels * row_scale * column_scale + bias.

    levels: bfloat16 [rows, width]; row_scale: float32 [rows]; column_scale: float32 [width]; bias: [width] in the model's dtype.
    """

    levels: torch.Tensor
    row_scale: torch.Tensor
    column_scale: torch.Tensor
    bias: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> ScaledProduct:
        """Some of the rows, by their places."""
        return self._replace(levels=self.levels.index_select(0, rows), row_scale=self.row_scale.index_select(0, rows))

    def finished(self) -> torch.Tensor:
        """[rows, width] in the bias' dtype."""
        return finish(self.levels, self.row_scale, self.column_scale, self.bias, self.bias.dtype)


def scaled_product(x: ScaledRows, weight: torch.Tensor) -> torch.Tensor:
    """bfloat16 [rows, out_features]: the product of the levels, to be multiplied by both scales.

    x: scaled by row; weight: fp8 [out_features, width].  It accumulates fast: the sums' error is at most a
    tenth of that of rounding to fp8 (benchmarks/RESULTS.md).
    """
    if lasts(x.values.shape[0]) and serves_blas_product(x.values, weight):
        return levels_product(x.values, weight)
    one = _one(weight.device)
    return torch._scaled_mm(x.values, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), dtype=torch.float32, device=device)


def scale_rows(x: torch.Tensor) -> ScaledRows:
    """Round [rows, width] so that the largest number of each row becomes the largest level.  On a GPU."""
    out = ScaledRows(torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(x.shape[0], dtype=torch.float32))
    _finish_and_scale(x, None, None, None, out)
    return out


def _finish_and_scale(
    x: torch.Tensor, row_scale: torch.Tensor | None, column_scale: torch.Tensor | None, bias: torch.Tensor | None, out: ScaledRows
) -> None:
    """With scales and a bias what is rounded is tanh GELU of the finished product."""
    rows, width = x.shape
    block = next_power_of_2(width)
    finishes = row_scale is not None
    _finish_and_scale_kernel[(rows,)](
        x, *(x if tensor is None else tensor for tensor in (row_scale, column_scale, bias)), *out, width,
        FINISHES_GELU=finishes, BLOCK=block, PLAIN_STEPS=interpreting(), num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip


def scale_rows_torch(x: torch.Tensor, fixed: torch.Tensor | None = None) -> ScaledRows:
    """The plain twin of `scale_rows`; with `fixed`, float32 of one number, that is every row's scale."""
    scale = (x.float().abs().amax(dim=1) / LARGEST_FP8).clamp(min=_SMALLEST_SCALE) if fixed is None else fixed.expand(x.shape[0])
    return ScaledRows((x.float() / scale[:, None]).clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn), scale)


def scale_tiles_torch(x: torch.Tensor) -> ScaledRows:
    """[rows, width] rounded by tiles: the twin of the kernels that leave their result so.  width in whole tiles."""
    rows = scale_rows_torch(x.reshape(-1, TILE))
    return ScaledRows(rows.values.view(x.shape), rows.scale.view(x.shape[0], -1))


def finish_gelu(product: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor) -> ScaledRows:
    """tanh GELU of product * row_scale * column_scale + bias, as rows for the next product.

    product: [rows, width]; row_scale: float32 [rows]; column_scale: float32 [width]; bias: [width].
    """
    out = ScaledRows(torch.empty_like(product, dtype=torch.float8_e4m3fn), torch.empty_like(row_scale))
    _finish_and_scale(product, row_scale, column_scale, bias, out)
    return out


def finish_gelu_torch(product: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor) -> ScaledRows:
    """The plain twin of `finish_gelu`."""
    return scale_rows_torch(gelu_tanh_torch(product.float() * row_scale[:, None] * column_scale + bias.float()))


def finish(
    product: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """product * row_scale * column_scale + bias in `dtype`; shapes as in `finish_gelu`."""
    rows, width = product.shape
    out = torch.empty_like(product, dtype=dtype)
    _finish_kernel[(rows, triton.cdiv(width, _BLOCK))](
        product, row_scale.contiguous(), column_scale, column_scale if bias is None else bias, out, width,
        HAS_BIAS=bias is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return out


def finish_torch(
    product: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """The plain twin of `finish`."""
    out = product.float() * row_scale[:, None] * column_scale
    return (out if bias is None else out + bias.float()).to(dtype)


@triton.jit
def _finish_and_scale_kernel(
    x_ptr, row_scale_ptr, column_scale_ptr, bias_ptr, out_ptr, out_scale_ptr, width,
    FINISHES_GELU: tl.constexpr, BLOCK: tl.constexpr, PLAIN_STEPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if FINISHES_GELU:
        x *= tl.load(row_scale_ptr + row) * tl.load(column_scale_ptr + column, mask=inside, other=0.0)
        x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        x = gelu_tanh_of(x) if PLAIN_STEPS else short_gelu_tanh_of(x)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0) / 448.0, 1e-12)  # columns outside are 0
    tl.store(out_scale_ptr + row, scale)
    level = x * (1.0 / scale)
    if PLAIN_STEPS:  # the product may be a rounding error too large; a GPU's conversion saturates
        level = tl.minimum(tl.maximum(level, -448.0), 448.0)
    tl.store(out_ptr + row * width + column, level.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def levels_of(numbers, scale_ptr):
    """Levels of the one scale at `scale_ptr`, to be converted."""
    return tl.minimum(tl.maximum(numbers * (1.0 / tl.load(scale_ptr)), -448.0), 448.0)


@triton.jit
def _finish_kernel(x_ptr, row_scale_ptr, column_scale_ptr, bias_ptr, out_ptr, width, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    x *= tl.load(row_scale_ptr + row) * tl.load(column_scale_ptr + column, mask=inside, other=0.0)
    if HAS_BIAS:
        x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + column, x.to(out_ptr.dtype.element_ty), mask=inside)
