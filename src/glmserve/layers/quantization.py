"""How a matrix becomes integers or 8-bit floats, and how a released checkpoint's integers become ours.

A scale belongs to one output row: rows may be stacked, reordered, or rounded a few at a time without changing a number.
The layouts that result are those of kernels/quantized_linear.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from glmserve.kernels.quantized_linear import dequantize, pack_int4
from glmserve.kernels.scaled_rows import LARGEST_FP8
from glmserve.protocol.weight_format import WeightFormat

PACKED_DTYPES: dict[WeightFormat, torch.dtype] = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}
_LARGEST_LEVEL: dict[WeightFormat, float] = {"int8": 127, "int4": 7, "fp8": LARGEST_FP8}


class QuantizedRows(NamedTuple):
    """Some output rows of a matrix.  weight: packed, [rows, ...]; scale: [rows, 1]."""

    weight: torch.Tensor
    scale: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, in_features) of the numbers that these stand for."""
        rows, columns = self.weight.shape
        return rows, columns * 2 if self.weight.dtype == torch.uint8 else columns

    def is_of(self, weight_format: WeightFormat) -> bool:
        """Whether these have that format, or may be made plain numbers where there is none."""
        return weight_format == "none" or self.weight.dtype == PACKED_DTYPES[weight_format]

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """[rows, in_features]."""
        return dequantize(self.weight, self.scale, dtype)


def packed_columns(weight_format: WeightFormat, in_features: int) -> int:
    """Elements in a packed row.  Raises ValueError where int4 would leave half a byte."""
    if weight_format != "int4":
        return in_features
    if in_features % 2:
        raise ValueError(f"int4 keeps two columns in a byte, so a matrix cannot have {in_features} columns.")
    return in_features // 2


def quantize_rows(rows: torch.Tensor, weight_format: WeightFormat) -> QuantizedRows:
    """Round [rows, in_features] of any float dtype: the largest number of each row becomes the format's largest level.

    Source: the released checkpoints' scale, max|w| / (2 ** (bits - 1) - 1), rounded half to even.
    """
    rows = rows.float()
    largest = _LARGEST_LEVEL[weight_format]
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / largest
    levels = rows / scale
    if weight_format == "fp8":
        return QuantizedRows(levels.clamp_(-largest, largest).to(torch.float8_e4m3fn), scale)
    integers = levels.round_().clamp_(-largest, largest).to(torch.int8)
    return QuantizedRows(pack_int4(integers) if weight_format == "int4" else integers, scale)


def released_rows(packed: torch.Tensor, scale: torch.Tensor, bits: int) -> QuantizedRows:
    """Rows of a released matrix in our layout.

    packed: int8; with 8 bits [rows, in_features], with 4 [rows, in_features / 2], the even column in a byte's high nibble, both two's
    complement.  scale: float16 [rows].  Source: quantization.py of THUDM/chatglm-6b-int4.
    """
    if bits == 8:
        return QuantizedRows(packed, scale.float()[:, None])
    even, odd = packed >> 4, (packed << 4) >> 4
    return QuantizedRows(pack_int4(torch.stack((even, odd), dim=2).flatten(1)), scale.float()[:, None])
