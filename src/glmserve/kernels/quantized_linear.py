"""The matrix product of half-precision rows with a quantized weight: its tensor layouts and the plain twin that defines it.

The dtype of the packed weight names its format; value = scale * level:

- int8:  torch.int8 [out_features, in_features], levels -128 to 127.
- int4:  torch.uint8 [out_features, in_features / 2].  Byte j of a row holds column j in its low nibble and column j + in_features / 2 in
  its high nibble, so that a run of bytes meets two runs of x.  A nibble is level + 8 (levels -8 to 7): no sign has to be extended.
- fp8:   torch.float8_e4m3fn [out_features, in_features], levels -448 to 448.

scale: float32 [out_features, 1] (a released one is float16, widened without loss).
All tensors are contiguous.  How a weight becomes one of these stands in layers/quantization.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from glmserve.kernels.activation import gelu_tanh_torch
from glmserve.kernels.backend import interpreting, on_gpu, tl, triton
from glmserve.kernels.packed_levels import INT4, format_of, levels_of_bytes, levels_of_nibbles, loadable

_BLOCK = 1024


def quantized_linear_torch(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """x W^T + b, then tanh GELU if asked: the plain twin of the kernels, everything in float32, rounded once at the end.

    x: [num_tokens, in_features]; weight and scale as above; bias: [out_features]; returns [num_tokens, out_features] in x's dtype.
    """
    out = F.linear(x.float(), dequantize(weight, scale), None if bias is None else bias.float())
    return (gelu_tanh_torch(out) if gelu else out).to(x.dtype)


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight as numbers, [out_features, in_features]; scale * level is made in float32 and rounded to `dtype` once."""
    if not on_gpu(weight):
        return dequantize_torch(weight, scale, dtype)
    return dequantize_triton(weight, scale, dtype)


def dequantize_torch(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The plain twin of `dequantize`."""
    levels = unpack_int4(weight) if weight.dtype == torch.uint8 else weight
    return levels.float().mul_(scale).to(dtype)


def dequantize_triton(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The Triton path of `dequantize`: a program takes a piece of a stored row."""
    out_features, stored = weight.shape
    form = format_of(weight, scale)
    out = torch.empty((out_features, 2 * stored if form == INT4 else stored), dtype=dtype, device=weight.device)
    _dequantize_kernel[(out_features, triton.cdiv(stored, _BLOCK))](
        loadable(weight), scale, out, stored, FORMAT=form, BLOCK=_BLOCK, PLAIN_STEPS=interpreting()
    )
    return out


def pack_int4(levels: torch.Tensor) -> torch.Tensor:
    """int8 levels -8 to 7, [out_features, in_features] with in_features even -> the int4 layout, uint8 [out_features, in_features / 2]."""
    low, high = (levels + 8).to(torch.uint8).chunk(2, dim=1)
    return low | (high << 4)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`: int8 [out_features, in_features]."""
    return torch.cat((packed & 15, packed >> 4), dim=1).to(torch.int8) - 8


@triton.jit
def _dequantize_kernel(
    weight_ptr, scale_ptr, out_ptr, stored, FORMAT: tl.constexpr, BLOCK: tl.constexpr, PLAIN_STEPS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < stored
    scale = tl.load(scale_ptr + row)
    weight = tl.load(weight_ptr + row * stored + column, mask=inside, other=0)
    if FORMAT == 3:
        low, high = levels_of_nibbles(weight, PLAIN_STEPS)
        out_at = out_ptr + row * 2 * stored + column
        tl.store(out_at, (low.to(tl.float32) * scale).to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(out_at + stored, (high.to(tl.float32) * scale).to(out_ptr.dtype.element_ty), mask=inside)
    else:
        level = levels_of_bytes(weight, FORMAT, PLAIN_STEPS)
        tl.store(out_ptr + row * stored + column, (level.to(tl.float32) * scale).to(out_ptr.dtype.element_ty), mask=inside)
