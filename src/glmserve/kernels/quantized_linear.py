"""The matrix product of half-precision rows with a quantized weight: its tensor layouts and the plain twin that defines it.

The dtype of the packed weight names its format; value = scale * level:

- int8:  torch.int8 [out_features, in_features], levels -128 to 127.
- int4:  torch.uint8 [out_features, in_features / 2].  Byte j of a row holds column j in its low nibble and column j + in_features / 2 in
  its high nibble, so that a run of bytes meets two runs of x.  A nibble is level + 8 (levels -8 to 7): no sign has to be extended.
- fp8:   torch.float8_e4m3fn [out_features, in_features], levels -448 to 448.

scale: [out_features, groups]; column c belongs to group c // (in_features / groups).  int8, fp8 and released checkpoints have one group,
in float32 (a released scale is float16, widened without loss).  int4 made here may have more, an even number of them, in float16.
All tensors are contiguous.  How a weight becomes one of these stands in layers/quantization.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from glmserve.kernels.activation import gelu_tanh_torch

LARGEST_FP8 = 448.0  # of float8_e4m3fn


def quantized_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """x W^T + b, then tanh GELU if asked.

    x: [num_tokens, in_features]; weight and scale as above; bias: [out_features]; returns [num_tokens, out_features] in x's dtype.
    """
    return quantized_linear_torch(x, weight, scale, bias, gelu)


def quantized_linear_torch(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """The plain twin of `quantized_linear`: everything in float32, rounded once at the end."""
    out = F.linear(x.float(), dequantize(weight, scale), None if bias is None else bias.float())
    return (gelu_tanh_torch(out) if gelu else out).to(x.dtype)


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight as numbers, [out_features, in_features]; scale * level is made in float32 and rounded to `dtype` once."""
    levels = unpack_int4(weight) if weight.dtype == torch.uint8 else weight
    grouped = levels.float().view(*scale.shape, -1)  # [out_features, groups, columns]
    return grouped.mul_(scale.float()[:, :, None]).flatten(1).to(dtype)


def pack_int4(levels: torch.Tensor) -> torch.Tensor:
    """int8 levels -8 to 7, [out_features, in_features] with in_features even -> the int4 layout, uint8 [out_features, in_features / 2]."""
    low, high = (levels + 8).to(torch.uint8).chunk(2, dim=1)
    return low | (high << 4)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`: int8 [out_features, in_features]."""
    return torch.cat((packed & 15, packed >> 4), dim=1).to(torch.int8) - 8
