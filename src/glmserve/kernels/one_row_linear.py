"""The matrix product of one row with a weight: decode for a single stream, where all that counts is how fast the weight arrives.

Bias and tanh GELU are fused, and the weight is loaded before the kernel waits for its input, so the memory stays busy from one product
to the next.  From two rows on cuBLAS is faster than what was tried here (benchmarks/RESULTS.md).  Twin: `one_row_linear_torch`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from glmserve.kernels.activation import gelu_tanh_of, gelu_tanh_torch
from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, tl, triton, use_triton

_OUTPUTS, _COLUMNS, _NUM_WARPS = 4, 2048, 8  # a program's share of the weight
_FEWEST_COLUMNS = 16


def is_one_row(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `one_row_linear` serves this product: one row, half precision, on a GPU."""
    half = x.dtype in (torch.float16, torch.bfloat16) and weight.dtype == x.dtype
    return use_triton(x) and half and x.shape[0] == 1 and x.shape[1] % _FEWEST_COLUMNS == 0


def one_row_linear_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    """The plain twin of `one_row_linear`."""
    out = F.linear(x, weight, bias)
    return gelu_tanh_torch(out) if gelu else out


def one_row_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False) -> torch.Tensor:
    """x W^T + b, then tanh GELU if asked.  x: [1, in_features]; weight: [out_features, in_features]; bias: [out_features]."""
    in_features, out_features = x.shape[1], weight.shape[0]
    out = x.new_empty((1, out_features))
    columns = min(_COLUMNS, in_features & -in_features)  # the largest power of two that divides
    _one_row_kernel[(triton.cdiv(out_features, _OUTPUTS),)](
        x, weight, weight if bias is None else bias, out, out_features,
        IN_FEATURES=in_features, OUTPUTS=_OUTPUTS, COLUMNS=columns, HAS_BIAS=bias is not None, GELU=gelu, num_warps=_NUM_WARPS,
        **early_start(x),
    )  # fmt: skip
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
