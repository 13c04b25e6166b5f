"""Matrix products of a few rows with a large weight: decode at small batches, where all that counts is how fast the weight arrives.

One row is a sum of products; up to sixteen rows go through the matrix units with the weight as the tall side.  Both fuse bias and tanh
GELU and load the weight before they wait for their input, so the memory stays busy from one product to the next.  From 17 rows on
cuBLAS is as fast.  Measured in benchmarks/RESULTS.md, "products of few rows".  Twin: `skinny_linear_torch`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from glmserve.kernels.activation import gelu_tanh_of, gelu_tanh_torch
from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, interpreting, tl, triton

MAX_ROWS = 16
_ONE_ROW = {"OUTPUTS": 4, "COLUMNS": 2048, "num_warps": 8}
_FEW_ROWS = {"OUTPUTS": 32, "COLUMNS": 256, "num_warps": 4, "num_stages": 4}
_FEWEST_COLUMNS = 16  # of a matrix-unit step


def is_skinny(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `skinny_linear` serves this product: few rows in half precision on a GPU, and columns that divide evenly."""
    half = x.dtype in (torch.float16, torch.bfloat16) and weight.dtype == x.dtype
    return x.is_cuda and half and x.shape[0] <= MAX_ROWS and x.shape[1] % _FEWEST_COLUMNS == 0


def skinny_linear_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    """The plain twin of `skinny_linear`."""
    out = F.linear(x, weight, bias)
    return gelu_tanh_torch(out) if gelu else out


def skinny_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False) -> torch.Tensor:
    """x W^T + b, then tanh GELU if asked.  x: [num_rows, in_features], dense; weight: [out_features, in_features]; bias: [out_features]."""
    num_rows, in_features = x.shape
    out_features = weight.shape[0]
    out = x.new_empty((num_rows, out_features))
    settings = dict(_ONE_ROW if num_rows == 1 else _FEW_ROWS)
    settings["COLUMNS"] = min(settings["COLUMNS"], in_features & -in_features)  # the largest power of two that divides
    arguments = (x, weight, weight if bias is None else bias, out, out_features)
    flags = {"IN_FEATURES": in_features, "HAS_BIAS": bias is not None, "GELU": gelu, **early_start(x.device)}
    grid = (triton.cdiv(out_features, settings["OUTPUTS"]),)
    if num_rows == 1:
        _one_row_kernel[grid](*arguments, **flags, **settings)
    else:
        _few_rows_kernel[grid](
            *arguments, num_rows, ROWS=MAX_ROWS, FLOAT32_DOT=x.dtype == torch.float32 or interpreting(), **flags, **settings
        )
    return out


@triton.jit
def _one_row_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, out_features, IN_FEATURES: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = output < out_features
    column = tl.arange(0, COLUMNS)
    weight_at = weight_ptr + output.to(tl.int64)[:, None] * IN_FEATURES + column[None, :]
    weight = tl.load(weight_at, mask=inside[:, None], other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.sum(weight.to(tl.float32) * tl.load(x_ptr + column).to(tl.float32)[None, :], axis=1)
    for start in tl.static_range(COLUMNS, IN_FEATURES, COLUMNS):
        weight = tl.load(weight_at + start, mask=inside[:, None], other=0.0)
        total += tl.sum(weight.to(tl.float32) * tl.load(x_ptr + start + column).to(tl.float32)[None, :], axis=1)
    if HAS_BIAS:
        total += bias
    if GELU:
        total = gelu_tanh_of(total)
    tl.store(out_ptr + output, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _few_rows_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, out_features, num_rows, ROWS: tl.constexpr, IN_FEATURES: tl.constexpr, OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr, EARLY: tl.constexpr, FLOAT32_DOT: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = output < out_features
    column, row = tl.arange(0, COLUMNS), tl.arange(0, ROWS)
    weight_at = weight_ptr + output.to(tl.int64)[:, None] * IN_FEATURES + column[None, :]
    x_at = x_ptr + row[None, :] * IN_FEATURES + column[:, None]
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(0, IN_FEATURES, COLUMNS):
        weight = tl.load(weight_at + start, mask=inside[:, None], other=0.0)
        x = tl.load(x_at + start, mask=(row < num_rows)[None, :], other=0.0)
        if FLOAT32_DOT:
            weight, x = weight.to(tl.float32), x.to(tl.float32)
        total = tl.dot(weight, x, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    if GELU:
        total = gelu_tanh_of(total)
    out_at = out_ptr + row[None, :].to(tl.int64) * out_features + output[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (row < num_rows)[None, :])
