"""LayerNorm and RMSNorm, each fused with the residual addition in front of it.  Statistics in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, tl, triton, use_triton


def residual_layer_norm(
    x: torch.Tensor, residual: torch.Tensor | None, alpha: float, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """LayerNorm(x + alpha * residual); plain LayerNorm(x) without a residual.

    x, residual: [num_tokens, hidden_size]; returns the same shape and dtype.  Source: GLMBlock in modeling_chatglm.py, whose residual
    branch is the normalised input, so the sum itself is not needed afterwards.
    """
    if not use_triton(x):
        return residual_layer_norm_torch(x, residual, alpha, weight, bias, epsilon)
    return residual_layer_norm_triton(x, residual, alpha, weight, bias, epsilon)


def residual_layer_norm_torch(
    x: torch.Tensor, residual: torch.Tensor | None, alpha: float, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The plain twin of `residual_layer_norm`."""
    total = x.float() if residual is None else torch.add(x.float(), residual.float(), alpha=alpha)
    return F.layer_norm(total, (x.shape[-1],), weight.float(), bias.float(), epsilon).to(x.dtype)


def residual_layer_norm_triton(
    x: torch.Tensor, residual: torch.Tensor | None, alpha: float, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The Triton path of `residual_layer_norm`: one program a row."""
    num_tokens, hidden_size = x.shape
    out = torch.empty_like(x)
    block = next_power_of_2(hidden_size)
    _residual_layer_norm_kernel[(num_tokens,)](
        x, x if residual is None else residual, alpha, weight, bias, out, hidden_size, epsilon,
        HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)),
        **early_start(x),
    )  # fmt: skip
    return out


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


@triton.jit
def _residual_layer_norm_kernel(
    x_ptr, residual_ptr, alpha, weight_ptr, bias_ptr, out_ptr, hidden_size, epsilon, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * hidden_size
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden_size
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.load(x_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total += alpha * tl.load(residual_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / hidden_size
    centred = tl.where(inside, total - mean, 0.0)
    inverse_deviation = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / hidden_size + epsilon)
    normed = centred * inverse_deviation * weight + bias
    tl.store(out_ptr + row + columns, normed.to(out_ptr.dtype.element_ty), mask=inside)


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
