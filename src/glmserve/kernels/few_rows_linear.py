"""The matrix product of up to 64 rows with a weight of 16 bits, int8 or int4: decode, where all that counts is how fast the weight arrives.

A program owns some outputs and streams their weights through shared memory into the matrix units, the rows being the narrow side.  Where
that gives too few programs to fill the chip, the columns are split too, and the parts, in float32, are left to the LayerNorm that reads
them (`few_rows_parts`).  Weights of 8 or 4 bits become float16 on the way, exactly; so do their rows, which must therefore stay within
float16's range (a larger number becomes the largest one).  Twins: `F.linear` and `quantized_linear_torch`.
"""

from __future__ import annotations

import torch

from glmserve.kernels.activation import gelu_tanh_of
from glmserve.kernels.backend import (
    early_start,
    gdc_launch_dependents,
    gdc_wait,
    has_large_shared_memory,
    interpreting,
    next_power_of_2,
    on_gpu,
    prefetch_rows,
    tl,
    triton,
    use_triton,
)
from glmserve.kernels.packed_levels import FP8, INT8, PLAIN, format_of, levels_of_bytes, levels_of_nibbles

_MOST_ROWS = 64  # beyond, a library's product is faster
_PROGRAMS_WANTED = 192
_MAX_SPLITS = 8
_BLOCK = 1024
_AHEAD = 512  # bytes of each weight row that a program asks for while it waits; more gets in the way of those that run


def serves_few_rows(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> bool:
    """Whether `few_rows_linear` serves this product: few rows, half precision, on a GPU, columns in whole tiles."""
    half = x.dtype in (torch.float16, torch.bfloat16) and (scale is not None or weight.dtype == x.dtype)
    few = x.shape[0] <= _MOST_ROWS and weight.shape[1] % 32 == 0 and format_of(weight, scale) != FP8
    return (use_triton(x) if scale is None else on_gpu(x)) and half and few


def few_rows_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """x W^T + b, then tanh GELU if asked: [rows, out_features].

    x: [rows, in_features], contiguous; weight: [out_features, in_features] in x's dtype with `scale` None, or a packed weight and its
    scale as in kernels/quantized_linear.py; bias: [out_features].
    """
    return _launch(x, weight, scale, bias, gelu, 1)[0]


def few_rows_parts(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """x W^T as summands [parts, rows, out_features] for a LayerNorm that adds them up: float32 where there are several."""
    splits, tiles = 1, triton.cdiv(weight.shape[0], 64)
    while splits < _MAX_SPLITS and tiles * splits < _PROGRAMS_WANTED and weight.shape[1] % (64 * splits) == 0:
        splits *= 2
    return _launch(x, weight, scale, None, False, splits)


def _launch(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, gelu: bool, splits: int
) -> torch.Tensor:
    rows, in_features = x.shape
    out_features, form = weight.shape[0], format_of(weight, scale)
    span = weight.shape[1] // splits
    outputs, columns, stages = _tile(form, rows, span, x.device)
    out = x.new_empty((splits, rows, out_features), dtype=torch.float32 if splits > 1 else x.dtype)
    if form != PLAIN and x.dtype != torch.float16:
        x = _as_half(x)
    _few_rows_kernel[(triton.cdiv(out_features, outputs), splits)](
        x, weight, weight if scale is None else scale, weight if bias is None else bias, out, rows, out_features,
        IN_FEATURES=in_features, SPAN=span, ROWS=max(16, next_power_of_2(rows)), OUTPUTS=outputs, COLUMNS=columns, STAGES=stages,
        FORMAT=form, HAS_BIAS=bias is not None, GELU=gelu, PLAIN_STEPS=interpreting(),
        AHEAD=_AHEAD if span * weight.element_size() % _AHEAD == 0 else 0, num_warps=4, **early_start(x),
    )  # fmt: skip
    return out


def _tile(form: int, rows: int, span: int, device: torch.device) -> tuple[int, int, int]:
    """(outputs, columns, stages) of a program's tile: the fastest on an H200, smaller where shared memory is."""
    narrow = form == INT8 and rows <= 16
    outputs, columns, stages = (32, 256, 3) if narrow else (64, 128, 4 if rows <= 16 or form != PLAIN else 3)
    if not has_large_shared_memory(device):
        columns, stages = min(columns, 64), 3
    return outputs, min(columns, span & -span), stages  # the largest power of two that divides the span


@triton.jit(do_not_specialize=["rows"])
def _few_rows_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, rows, out_features,
    IN_FEATURES: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    FORMAT: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr, PLAIN_STEPS: tl.constexpr, AHEAD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside, row_inside = output < out_features, row < rows
    HALF: tl.constexpr = IN_FEATURES // 2
    STORED: tl.constexpr = HALF if FORMAT == 3 else IN_FEATURES
    weight_at = weight_ptr + output.to(tl.int64)[:, None] * STORED + (split * SPAN + column)[None, :]
    x_at = x_ptr + row[:, None] * IN_FEATURES + (split * SPAN + column)[None, :]
    if EARLY:
        if AHEAD > 0:
            prefetch_rows(weight_ptr + tl.minimum(output, out_features - 1).to(tl.int64) * STORED + split * SPAN, AHEAD)
        gdc_wait()
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in tl.range(0, SPAN, COLUMNS, num_stages=STAGES):
        weight = tl.load(weight_at + start, mask=inside[:, None], other=0)
        x = tl.load(x_at + start, mask=row_inside[:, None], other=0.0)
        if FORMAT == 0:
            if PLAIN_STEPS:
                weight, x = weight.to(tl.float32), x.to(tl.float32)
            total = tl.dot(weight, tl.trans(x), total)
        elif FORMAT == 3:
            high_x = tl.load(x_at + start + HALF, mask=row_inside[:, None], other=0.0)
            low, high = levels_of_nibbles(weight, PLAIN_STEPS)
            total = tl.dot(low, tl.trans(x), total)
            total = tl.dot(high, tl.trans(high_x), total)
        else:
            total = tl.dot(levels_of_bytes(weight, FORMAT, PLAIN_STEPS), tl.trans(x), total)
    if EARLY:
        gdc_launch_dependents()  # not sooner: the next kernel's waiting programs would take the shared memory of this one's
    if FORMAT != 0:
        total *= tl.load(scale_ptr + output, mask=inside, other=0.0)[:, None]
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    if GELU:
        total = gelu_tanh_of(total)
    out_at = out_ptr + split * rows * out_features + row[None, :] * out_features + output[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & row_inside[None, :])


def _as_half(x: torch.Tensor) -> torch.Tensor:
    """float16, the largest one for what exceeds its range: once, and not in every program of the product."""
    out = torch.empty_like(x, dtype=torch.float16)
    _as_half_kernel[(triton.cdiv(x.numel(), _BLOCK),)](x, out, x.numel(), BLOCK=_BLOCK, **early_start(x))
    return out


@triton.jit(do_not_specialize=["count"])
def _as_half_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_ptr + index, mask=index < count, other=0.0).to(tl.float32)
    tl.store(out_ptr + index, tl.minimum(tl.maximum(x, -65504.0), 65504.0).to(tl.float16), mask=index < count)
