"""fp8 rows times an fp8 weight, for 2 to 64 rows: both go from memory to the matrix units as they are.

A program owns some outputs and streams their weights; the rows are the narrow side.  The rows' scales come by row or by tile of 128
columns (`ScaledRows`), so that each kernel in front can round what it makes without having seen the whole row: GELU's result leaves here
as such tiles again.  The matrix units add products of fp8 in few bits, so what each tile of columns gives is added up in float32.
Twin: `scaled_few_rows_torch`.
"""

from __future__ import annotations

import torch

from glmserve.kernels.activation import gelu_tanh_of, gelu_tanh_torch
from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, interpreting, next_power_of_2, prefetch_rows, tl, triton
from glmserve.kernels.scaled_rows import TILE, ScaledRows

_MOST_ROWS = 64
_PROGRAMS_WANTED = 192
_MAX_SPLITS = 4
_STAGES = 4
_AHEAD = 2  # tiles of each weight row that a program asks for while it waits


def serves_scaled_few_rows(num_rows: int, weight: torch.Tensor) -> bool:
    """Whether these kernels serve so many rows."""
    return 1 < num_rows <= _MOST_ROWS and weight.shape[1] % TILE == 0


def scaled_few_rows(
    x: ScaledRows, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """x W^T + b in `dtype`: [rows, out_features].

    weight: fp8 [out_features, in_features], in_features in whole tiles; scale: float32 [out_features, 1]; bias: [out_features].
    """
    out = x.scale.new_empty((1, x.values.shape[0], weight.shape[0]), dtype=dtype)
    return _launch(x, weight, scale, bias, out, None)[0]


def scaled_few_rows_parts(x: ScaledRows, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x W^T as summands for a LayerNorm that adds them up: float32 [parts, rows, out_features]."""
    splits, programs, tiles = 1, triton.cdiv(weight.shape[0], 64), weight.shape[1] // TILE
    while splits < _MAX_SPLITS and programs * splits < _PROGRAMS_WANTED and tiles % (2 * splits) == 0:
        splits *= 2
    out = x.scale.new_empty((splits, x.values.shape[0], weight.shape[0]), dtype=torch.float32)
    return _launch(x, weight, scale, None, out, None)


def scaled_few_rows_gelu(x: ScaledRows, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> ScaledRows:
    """tanh GELU of x W^T + b, rounded by tiles for the next product.  out_features in whole tiles."""
    rows, out_features = x.values.shape[0], weight.shape[0]
    out = torch.empty((1, rows, out_features), dtype=torch.float8_e4m3fn, device=weight.device)
    out_scale = x.scale.new_empty((rows, out_features // TILE))
    return ScaledRows(_launch(x, weight, scale, bias, out, out_scale)[0], out_scale)


def scaled_few_rows_torch(
    x: ScaledRows, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """The plain twin, in float32 and not rounded at the end."""
    out = x.numbers() @ (weight.float() * scale).t()
    out = out if bias is None else out + bias.float()
    return gelu_tanh_torch(out) if gelu else out


def _launch(
    x: ScaledRows, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, out_scale: torch.Tensor | None
) -> torch.Tensor:
    splits, rows, out_features = out.shape
    in_features, outputs = weight.shape[1], 64 if out_scale is None else TILE
    _scaled_few_rows_kernel[(triton.cdiv(out_features, outputs), splits)](
        x.values, x.scale, weight, scale, scale if bias is None else bias, out, scale if out_scale is None else out_scale,
        rows, out_features, x.scale.stride(0), IN_FEATURES=in_features, SPAN=in_features // splits, ROWS=max(16, next_power_of_2(rows)),
        OUTPUTS=outputs, COLUMNS=TILE, STAGES=_STAGES, BY_TILE=x.by_tile, HAS_BIAS=bias is not None, GELU=out_scale is not None,
        PLAIN_STEPS=interpreting(), AHEAD=_AHEAD if in_features // splits % (_AHEAD * TILE) == 0 else 0,
        num_warps=4 if out_scale is None else 8, **early_start(x.values),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows", "x_scale_stride"])
def _scaled_few_rows_kernel(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, out_scale_ptr, rows, out_features, x_scale_stride,
    IN_FEATURES: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    BY_TILE: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr, PLAIN_STEPS: tl.constexpr, AHEAD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside, row_inside = output < out_features, row < rows
    # No mask for the weights: the last program's spare outputs read the last row again.
    weight_row_at = weight_ptr + tl.minimum(output, out_features - 1).to(tl.int64) * IN_FEATURES + split * SPAN
    weight_at = weight_row_at[:, None] + column[None, :]
    x_at = x_ptr + row[:, None] * IN_FEATURES + (split * SPAN + column)[None, :]
    x_scale_at = x_scale_ptr + row * x_scale_stride  # 0 where all rows have one
    if EARLY:
        if AHEAD > 0:
            prefetch_rows(weight_row_at, AHEAD * COLUMNS)
        gdc_wait()
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for tile in tl.range(0, SPAN // COLUMNS, num_stages=STAGES):
        weight = tl.load(weight_at + tile * COLUMNS)
        x = tl.load(x_at + tile * COLUMNS, mask=row_inside[:, None], other=0.0)
        if PLAIN_STEPS:
            weight, x = weight.to(tl.float32), x.to(tl.float32)
        if BY_TILE:
            x_scale = tl.load(x_scale_at + split * (SPAN // COLUMNS) + tile, mask=row_inside, other=0.0)
            total += tl.dot(weight, tl.trans(x)) * x_scale[None, :]
        else:
            total = tl.dot(weight, tl.trans(x), total, max_num_imprecise_acc=COLUMNS)
    if EARLY:
        gdc_launch_dependents()  # not sooner: the next kernel's waiting programs would take the shared memory of this one's
    if not BY_TILE:
        total *= tl.load(x_scale_at, mask=row_inside, other=0.0)[None, :]
    total *= tl.load(scale_ptr + output, mask=inside, other=0.0)[:, None]
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    if GELU:
        total = gelu_tanh_of(total)
        out_scale = tl.maximum(tl.max(tl.abs(total), axis=0) / 448.0, 1e-12)
        tl.store(out_scale_ptr + row * (out_features // OUTPUTS) + tl.program_id(0), out_scale, mask=row_inside)
        total = tl.minimum(tl.maximum(total / out_scale[None, :], -448.0), 448.0)  # the quotient may be a rounding error larger
    out_at = out_ptr + split * rows * out_features + row[None, :] * out_features + output[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & row_inside[None, :])
