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
_LEVELS: dict[WeightFormat, tuple[float, float]] = {"int8": (-127, 127), "int4": (-8, 7), "fp8": (-LARGEST_FP8, LARGEST_FP8)}
_NOTHING = 1e-30  # a row of smaller numbers becomes zeros: its scale could not be held


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


def quantize_rows(rows: torch.Tensor, weight_format: WeightFormat, by_twos: bool = False) -> QuantizedRows:
    """Round [rows, in_features] of any float dtype to the nearest level; what is largest in a row becomes the format's largest level.

    int8, as in the released checkpoints: max|w| becomes 127 or -127.  int4 has a level more below zero than above: the number of max|w|
    becomes -8, if need be by a scale below zero, which loses less than the released -7 to 7 (docs/quantization.md).

    by_twos: fp8 alone takes the power of two above as scale.  A float is as fine there, and such scales can be changed without rounding
    again.
    """
    rows = rows.float()
    lowest, highest = _LEVELS[weight_format]
    extreme = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)) if weight_format == "int4" else -rows.abs().amax(dim=1, keepdim=True)
    scale = torch.where(extreme.abs() < _NOTHING, 1.0, extreme / lowest)
    if by_twos and weight_format == "fp8":
        scale = _power_of_two_above(scale)
    levels = rows / scale
    if weight_format == "fp8":
        return QuantizedRows(levels.clamp_(lowest, highest).to(torch.float8_e4m3fn), scale)
    integers = levels.round_().clamp_(lowest, highest).to(torch.int8)
    return QuantizedRows(pack_int4(integers) if weight_format == "int4" else integers, scale)


def _power_of_two_above(numbers: torch.Tensor) -> torch.Tensor:
    """The least that is no smaller than each of these positive numbers."""
    mantissa, exponent = torch.frexp(numbers)  # 0.5 <= mantissa < 1
    return torch.ldexp(torch.ones_like(numbers), exponent - (mantissa == 0.5).int())


def released_rows(packed: torch.Tensor, scale: torch.Tensor, bits: int) -> QuantizedRows:
    """Rows of a released matrix in our layout.

    packed: int8; with 8 bits [rows, in_features], with 4 [rows, in_features / 2], the even column in a byte's high nibble, both two's
    complement.  scale: float16 [rows].  Source: quantization.py of THUDM/chatglm-6b-int4.
    """
    if bits == 8:
        return QuantizedRows(packed, scale.float()[:, None])
    even, odd = packed >> 4, (packed << 4) >> 4
    return QuantizedRows(pack_int4(torch.stack((even, odd), dim=2).flatten(1)), scale.float()[:, None])
