"""LayerNorm and RMSNorm, each fused with the residual addition in front of it.  Statistics in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, tl, triton, use_triton
from glmserve.kernels.scaled_rows import ScaledRows, scale_rows_torch


class Summands(NamedTuple):
    """A matrix product whose last steps are left to the LayerNorm that reads it.

    The product is sum(parts) * row_scale * column_scale + bias.  parts: [parts, rows, out_features]; bias: [out_features];
    row_scale: float32 [rows], or one number expanded to that, and column_scale: float32 [out_features], both or neither.
    """

    parts: torch.Tensor
    bias: torch.Tensor | None = None
    row_scale: torch.Tensor | None = None
    column_scale: torch.Tensor | None = None

    def total(self) -> torch.Tensor:
        """The product in float32, [rows, out_features]."""
        total = self.parts.float().sum(dim=0)
        if self.row_scale is not None and self.column_scale is not None:
            total = total * self.row_scale[:, None] * self.column_scale
        return total if self.bias is None else total + self.bias.float()


def residual_layer_norm(
    x: torch.Tensor | Summands, residual: torch.Tensor | None, alpha: float, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """LayerNorm(x + alpha * residual); plain LayerNorm(x) without a residual.

    x, residual: [num_tokens, hidden_size]; returns the same shape and the weight's dtype.  Source: GLMBlock in modeling_chatglm.py, whose
    residual branch is the normalised input, so the sum itself is not needed afterwards.
    """
    if not use_triton(weight):
        return residual_layer_norm_torch(x, residual, alpha, weight, bias, epsilon)
    return residual_layer_norm_triton(x, residual, alpha, weight, bias, epsilon)


def residual_layer_norm_torch(
    x: torch.Tensor | Summands, residual: torch.Tensor | None, alpha: float, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The plain twin of `residual_layer_norm`."""
    return _layer_norm_torch(x, residual, alpha, weight, bias, epsilon).to(weight.dtype)


def residual_layer_norm_triton(
    x: torch.Tensor | Summands, residual: torch.Tensor | None, alpha: float, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The Triton path of `residual_layer_norm`: one program a row."""
    return _launch_layer_norm(x, residual, alpha, weight, bias, epsilon, None)


def residual_layer_norm_scaled(
    x: torch.Tensor | Summands,
    residual: torch.Tensor | None,
    alpha: float,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    fixed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ScaledRows]:
    """`residual_layer_norm`, and the same rows in fp8 for the product that comes next.  On a GPU.

    They are scaled by row, or all by `fixed`, float32 of one number.
    """
    num_tokens, hidden_size = x.parts.shape[1:] if isinstance(x, Summands) else x.shape
    values = torch.empty((num_tokens, hidden_size), dtype=torch.float8_e4m3fn, device=weight.device)
    scale = torch.empty(num_tokens, dtype=torch.float32, device=weight.device) if fixed is None else fixed.expand(num_tokens)
    scaled = ScaledRows(values, scale)
    return _launch_layer_norm(x, residual, alpha, weight, bias, epsilon, scaled, fixed is not None), scaled


def residual_layer_norm_scaled_torch(
    x: torch.Tensor | Summands,
    residual: torch.Tensor | None,
    alpha: float,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    fixed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ScaledRows]:
    """The plain twin of `residual_layer_norm_scaled`."""
    normed = _layer_norm_torch(x, residual, alpha, weight, bias, epsilon)
    return normed.to(weight.dtype), scale_rows_torch(normed, fixed)


def _layer_norm_torch(
    x: torch.Tensor | Summands, residual: torch.Tensor | None, alpha: float, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    given = x.total() if isinstance(x, Summands) else x.float()
    total = given if residual is None else torch.add(given, residual.float(), alpha=alpha)
    return F.layer_norm(total, weight.shape, weight.float(), bias.float(), epsilon)


def _launch_layer_norm(
    x: torch.Tensor | Summands,
    residual: torch.Tensor | None,
    alpha: float,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    scaled: ScaledRows | None,
    fixed: bool = False,
) -> torch.Tensor:
    given = x if isinstance(x, Summands) else Summands(x[None])
    num_parts, num_tokens, hidden_size = given.parts.shape
    out = weight.new_empty((num_tokens, hidden_size))
    block = next_power_of_2(hidden_size)
    # Rounding waits for the whole row once more; fewer warps wait less, where there are rows enough to keep the memory busy meanwhile.
    early = early_start(out)
    numbers_a_warp = 1024 if scaled is not None and not early["EARLY"] else 512
    _residual_layer_norm_kernel[(num_tokens,)](
        given.parts, _or(given.bias, weight), _or(given.row_scale, weight), _or(given.column_scale, weight), _or(residual, weight),
        alpha, weight, bias, out, *(scaled or (out, out)), num_tokens, hidden_size, epsilon,
        0 if given.row_scale is None else given.row_scale.stride(0),
        PARTS=num_parts, ADDS_BIAS=given.bias is not None, SCALED=given.row_scale is not None, HAS_RESIDUAL=residual is not None,
        ROUNDS=scaled is not None, FIXED=fixed, BLOCK=block, num_warps=min(16, max(1, block // numbers_a_warp)), **early,
    )  # fmt: skip
    return out


def _or(tensor: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    """A kernel takes a pointer also for what it will not read."""
    return stand_in if tensor is None else tensor


def residual_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm(x + residual), x + residual); without a residual (RMSNorm(x), x).

    x, residual: [num_tokens, hidden_size].  Source: LlamaRMSNorm in transformers.
    """
    if not use_triton(x):
        return residual_rms_norm_torch(x, residual, weight, epsilon)
    return residual_rms_norm_triton(x, residual, weight, epsilon)


def residual_rms_norm_torch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain twin of `residual_rms_norm`."""
    total = x if residual is None else x + residual
    normed = F.rms_norm(total.float(), (x.shape[-1],), weight.float(), epsilon)
    return normed.to(x.dtype), total


def residual_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The Triton path of `residual_rms_norm`: one program a row."""
    num_tokens, hidden_size = x.shape
    out = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    block = next_power_of_2(hidden_size)
    _residual_rms_norm_kernel[(num_tokens,)](
        x, x if residual is None else residual, weight, out, total, hidden_size, epsilon,
        HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)),
        **early_start(x),
    )  # fmt: skip
    return out, total


@triton.jit(do_not_specialize=["num_tokens"])
def _residual_layer_norm_kernel(
    parts_ptr, product_bias_ptr, row_scale_ptr, column_scale_ptr, residual_ptr, alpha, weight_ptr, bias_ptr, out_ptr,
    level_ptr, level_scale_ptr, num_tokens, hidden_size, epsilon, row_scale_stride,
    PARTS: tl.constexpr, ADDS_BIAS: tl.constexpr, SCALED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ROUNDS: tl.constexpr,
    FIXED: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = token * hidden_size
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden_size
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        gdc_launch_dependents()  # the next product's programs may come and ask for their weights
        gdc_wait()
    total = tl.load(parts_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts_ptr + part * num_tokens * hidden_size + row + columns, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        total *= tl.load(row_scale_ptr + token * row_scale_stride) * tl.load(column_scale_ptr + columns, mask=inside, other=0.0)
    if ADDS_BIAS:
        total += tl.load(product_bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total += alpha * tl.load(residual_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / hidden_size
    centred = tl.where(inside, total - mean, 0.0)
    inverse_deviation = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / hidden_size + epsilon)
    normed = centred * inverse_deviation * weight + bias
    tl.store(out_ptr + row + columns, normed.to(out_ptr.dtype.element_ty), mask=inside)
    if ROUNDS:
        if FIXED:
            scale = tl.load(level_scale_ptr)
        else:
            scale = tl.maximum(tl.max(tl.abs(normed), axis=0) / 448.0, 1e-12)  # columns outside are 0
            tl.store(level_scale_ptr + token, scale)
        level = tl.minimum(tl.maximum(normed * (1.0 / scale), -448.0), 448.0)  # the product may be a rounding error larger
        tl.store(level_ptr + row + columns, level.to(level_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _residual_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, hidden_size, epsilon, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * hidden_size
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden_size
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.load(x_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
        total = total.to(total_ptr.dtype.element_ty).to(tl.float32)
        tl.store(total_ptr + row + columns, total.to(total_ptr.dtype.element_ty), mask=inside)
    inverse_rms = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / hidden_size + epsilon)
    tl.store(out_ptr + row + columns, (total * inverse_rms * weight).to(out_ptr.dtype.element_ty), mask=inside)
