"""The matrix product of 1 to 64 rows with a weight in any format: decode, where all that counts is how fast the weight arrives.

A program owns some outputs and streams their weights through shared memory into the matrix units, the rows being the narrow side.  Where
that gives too few programs to fill the chip, the columns are split too, and the parts, in float32, are left to the LayerNorm that reads
them (`few_rows_parts`) or added up here.  Weights of 8 or 4 bits become float16 on the way, exactly; so do the rows, which must
therefore stay within float16's range (larger numbers become the largest one).  Twins: `F.linear` and `quantized_linear_torch`.
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
    tl,
    triton,
)

MOST_ROWS = 64
_PROGRAMS_WANTED = 256
_MAX_SPLITS = 8
_PLAIN, _FP8, _INT8, _INT4 = range(4)
_FORMATS = {torch.float8_e4m3fn: _FP8, torch.int8: _INT8, torch.uint8: _INT4}


def serves_few_rows(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> bool:
    """Whether `few_rows_linear` serves this product: few rows, half precision, on a GPU, columns in whole tiles."""
    half = x.dtype in (torch.float16, torch.bfloat16) and (scale is not None or weight.dtype == x.dtype)
    groups = 1 if scale is None else scale.shape[1]
    return x.is_cuda and half and x.shape[0] <= MOST_ROWS and _columns_of(weight) % (32 * groups) == 0


def few_rows_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """x W^T + b, then tanh GELU if asked: [rows, out_features].

    x: [rows, in_features], contiguous; weight: [out_features, in_features] in x's dtype with `scale` None, or a packed weight and its
    scale as in kernels/quantized_linear.py; bias: [out_features].
    """
    parts = _launch(x, weight, scale, bias, gelu, 1)
    return parts[0]


def few_rows_parts(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """x W^T as float32 summands [parts, rows, out_features], for a LayerNorm that adds them up."""
    return _launch(x, weight, scale, None, False, _num_splits(x, weight, scale))


def _launch(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, gelu: bool, splits: int
) -> torch.Tensor:
    rows, in_features = x.shape
    out_features = weight.shape[0]
    form = _PLAIN if scale is None else _FORMATS[weight.dtype]
    groups = 1 if scale is None else scale.shape[1]
    outputs, columns, stages = _tile(x, weight, groups, splits)
    out = x.new_empty((splits, rows, out_features), dtype=torch.float32 if splits > 1 else x.dtype)
    levels = weight.view(torch.int8) if form == _FP8 else weight  # loads of 8-bit floats are not pipelined, those of integers are
    _few_rows_kernel[(triton.cdiv(out_features, outputs), splits)](
        x, levels, weight if scale is None else scale, weight if bias is None else bias, out, rows, out_features,
        IN_FEATURES=in_features, SPAN=_columns_of(weight) // splits, ROWS=max(16, next_power_of_2(rows)), OUTPUTS=outputs,
        COLUMNS=columns, STAGES=stages, FORMAT=form, GROUPS=groups, HAS_BIAS=bias is not None, GELU=gelu, PLAIN_STEPS=interpreting(),
        num_warps=4, **early_start(x),
    )  # fmt: skip
    return out


def _columns_of(weight: torch.Tensor) -> int:
    """Elements in a stored row: columns, or pairs of columns in int4."""
    return weight.shape[1]


def _num_splits(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> int:
    """Into how many parts the columns are cut, from shapes alone."""
    groups = 1 if scale is None else scale.shape[1]
    tiles = triton.cdiv(weight.shape[0], 64)
    splits = 1
    while splits < _MAX_SPLITS and tiles * splits < _PROGRAMS_WANTED and _columns_of(weight) % (64 * splits * groups) == 0:
        splits *= 2
    return splits


def _tile(x: torch.Tensor, weight: torch.Tensor, groups: int, splits: int) -> tuple[int, int, int]:
    """(outputs, columns, stages) of a program's tile.  Measured on an H200; what fits elsewhere follows from shared memory."""
    span = _columns_of(weight) // max(splits, groups if weight.dtype == torch.uint8 else 1)
    columns = min(128 if x.shape[0] > 16 or weight.element_size() > 1 else 256, span & -span)
    if not has_large_shared_memory(x.device):
        return 64, min(columns, 64), 3
    return 64, columns, 4 if x.shape[0] <= 32 else 3


@triton.jit
def _few_rows_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, rows, out_features,
    IN_FEATURES: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    FORMAT: tl.constexpr, GROUPS: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr, PLAIN_STEPS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside, row_inside = output < out_features, row < rows
    HALF: tl.constexpr = IN_FEATURES // 2
    STORED: tl.constexpr = HALF if FORMAT == 3 else IN_FEATURES
    first = split * SPAN
    weight_at = weight_ptr + output.to(tl.int64)[:, None] * STORED + (first + column)[None, :]
    x_at = x_ptr + row[:, None] * IN_FEATURES + (first + column)[None, :]
    if EARLY:
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
            low, high = _nibbles(weight, PLAIN_STEPS)
            if GROUPS == 1:
                total = tl.dot(low, tl.trans(_as_half(x)), total)
                total = tl.dot(high, tl.trans(_as_half(high_x)), total)
            else:
                group = (first + start) // (IN_FEATURES // GROUPS)
                low_scale = tl.load(scale_ptr + output * GROUPS + group, mask=inside, other=0.0).to(tl.float32)
                high_scale = tl.load(scale_ptr + output * GROUPS + group + GROUPS // 2, mask=inside, other=0.0).to(tl.float32)
                total += tl.dot(low, tl.trans(_as_half(x))) * low_scale[:, None]
                total += tl.dot(high, tl.trans(_as_half(high_x))) * high_scale[:, None]
        else:
            total = tl.dot(_bytes(weight, FORMAT, PLAIN_STEPS), tl.trans(_as_half(x)), total)
    if EARLY:
        gdc_launch_dependents()
    if FORMAT != 0 and GROUPS == 1:
        total *= tl.load(scale_ptr + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    if GELU:
        total = gelu_tanh_of(total)
    out_at = out_ptr + split * rows * out_features + row[None, :] * out_features + output[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & row_inside[None, :])


@triton.jit
def _as_half(x):
    """float16, the largest one for what exceeds its range."""
    if x.dtype == tl.float16:
        return x
    else:
        return tl.minimum(tl.maximum(x.to(tl.float32), -65504.0), 65504.0).to(tl.float16)


@triton.jit
def _bytes(level, FORMAT: tl.constexpr, PLAIN_STEPS: tl.constexpr):
    """The levels of fp8 (1) or int8 (2) as float16, exactly.

    A float16 of 1024 to 2047 has its integer in its low bits: a byte put there, and 1024 and the offset taken off again, is a number
    without any of the slow conversions (after FasterTransformer's interleaved_numeric_conversion).
    """
    if FORMAT == 1:
        return level.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    elif PLAIN_STEPS:
        return level.to(tl.float16)
    else:
        return tl.inline_asm_elementwise(
            """
            {
                .reg .b32 u, offset;
                mov.b32 offset, 0x64806480;
                xor.b32 u, $2, 0x80808080;
                prmt.b32 $0, u, 0x64646464, 0x4140;
                prmt.b32 $1, u, 0x64646464, 0x4342;
                sub.f16x2 $0, $0, offset;
                sub.f16x2 $1, $1, offset;
            }
            """,
            "=r,=r,r", [level], dtype=tl.float16, is_pure=True, pack=4,
        )  # fmt: skip


@triton.jit
def _nibbles(packed, PLAIN_STEPS: tl.constexpr):
    """(low, high) levels of int4 bytes as float16, exactly; see `_bytes`."""
    if PLAIN_STEPS:
        return (packed & 15).to(tl.float16) - 8.0, (packed >> 4).to(tl.float16) - 8.0
    else:
        return tl.inline_asm_elementwise(
            """
            {
                .reg .b32 low, high, offset;
                mov.b32 offset, 0x64086408;
                and.b32 low, $4, 0x0f0f0f0f;
                shr.u32 high, $4, 4;
                and.b32 high, high, 0x0f0f0f0f;
                prmt.b32 $0, low, 0x64646464, 0x4140;
                prmt.b32 $1, low, 0x64646464, 0x4342;
                prmt.b32 $2, high, 0x64646464, 0x4140;
                prmt.b32 $3, high, 0x64646464, 0x4342;
                sub.f16x2 $0, $0, offset;
                sub.f16x2 $1, $1, offset;
                sub.f16x2 $2, $2, offset;
                sub.f16x2 $3, $3, offset;
            }
            """,
            "=r,=r,=r,=r,r", [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4,
        )  # fmt: skip
