"""The matrix product of one row with a weight: decode for a single stream, where all that counts is how fast the weight arrives.

Bias and tanh GELU are fused, and the weight is loaded before the kernel waits for its input, so the memory stays busy from one product
to the next.  Twins: `one_row_linear_torch` and `quantized_linear_torch`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from glmserve.kernels.activation import gelu_tanh_of, gelu_tanh_torch
from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, interpreting, on_gpu, tl, triton, use_triton
from glmserve.kernels.packed_levels import INT4, PLAIN, format_of, levels_of_bytes, levels_of_nibbles, loadable

_COLUMNS = 2048  # stored numbers of one output that a program takes at a time
_FEWEST_COLUMNS = 16


def is_one_row(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> bool:
    """Whether `one_row_linear` serves this product: one row, half precision, on a GPU."""
    half = x.dtype in (torch.float16, torch.bfloat16) and (scale is not None or weight.dtype == x.dtype)
    return (use_triton(x) if scale is None else on_gpu(x)) and half and x.shape[0] == 1 and weight.shape[1] % _FEWEST_COLUMNS == 0


def one_row_linear_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    """The plain twin of `one_row_linear` for plain weights."""
    out = F.linear(x, weight, bias)
    return gelu_tanh_torch(out) if gelu else out


def one_row_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """x W^T + b, then tanh GELU if asked: [1, out_features].

    x: [1, in_features]; weight: [out_features, in_features] in x's dtype with `scale` None, or a packed weight and its scale as in
    kernels/quantized_linear.py; bias: [out_features].
    """
    out_features, form = weight.shape[0], format_of(weight, scale)
    out = x.new_empty((1, out_features))
    columns = min(_COLUMNS, weight.shape[1] & -weight.shape[1])  # the largest power of two that divides
    outputs, num_warps = (4, 8) if form == PLAIN else (8 if form == INT4 else 4, 4)
    _one_row_kernel[(triton.cdiv(out_features, outputs),)](
        x, loadable(weight), weight if scale is None else scale, weight if bias is None else bias, out, out_features,
        IN_FEATURES=x.shape[1], STORED=weight.shape[1], OUTPUTS=outputs, COLUMNS=columns, FORMAT=form, HAS_BIAS=bias is not None,
        GELU=gelu, PLAIN_STEPS=interpreting(), num_warps=num_warps, **early_start(x),
    )  # fmt: skip
    return out


@triton.jit
def _one_row_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, out_features, IN_FEATURES: tl.constexpr, STORED: tl.constexpr,
    OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, FORMAT: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    PLAIN_STEPS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = output < out_features
    column = tl.arange(0, COLUMNS)
    weight_at = weight_ptr + output.to(tl.int64)[:, None] * STORED + column[None, :]
    weight = tl.load(weight_at, mask=inside[:, None], other=0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)
    if FORMAT != 0:
        scale = tl.load(scale_ptr + output, mask=inside, other=0.0)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    total = _products(weight, x_ptr + column, IN_FEATURES, FORMAT, PLAIN_STEPS)
    for start in tl.static_range(COLUMNS, STORED, COLUMNS):
        weight = tl.load(weight_at + start, mask=inside[:, None], other=0)
        total += _products(weight, x_ptr + start + column, IN_FEATURES, FORMAT, PLAIN_STEPS)
    if FORMAT != 0:
        total *= scale
    if HAS_BIAS:
        total += bias
    if GELU:
        total = gelu_tanh_of(total)
    tl.store(out_ptr + output, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _products(weight, x_at, IN_FEATURES: tl.constexpr, FORMAT: tl.constexpr, PLAIN_STEPS: tl.constexpr):
    """Sum over the loaded columns, float32 [OUTPUTS]."""
    x = tl.load(x_at).to(tl.float32)[None, :]
    if FORMAT == 3:
        low, high = levels_of_nibbles(weight, PLAIN_STEPS)
        high_x = tl.load(x_at + IN_FEATURES // 2).to(tl.float32)[None, :]
        return tl.sum(low.to(tl.float32) * x + high.to(tl.float32) * high_x, axis=1)
    elif FORMAT == 0:
        return tl.sum(weight.to(tl.float32) * x, axis=1)
    else:
        return tl.sum(levels_of_bytes(weight, FORMAT, PLAIN_STEPS).to(tl.float32) * x, axis=1)
