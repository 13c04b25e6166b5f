"""The names of the formats that weights are kept in, and how large their numbers are."""

from __future__ import annotations

from typing import Literal

WeightFormat = Literal["none", "int8", "int4", "fp8"]  # none: numbers of the model's dtype

_BYTES = {"int8": 1.0, "int4": 0.5, "fp8": 1.0}


def bytes_per_number(weight_format: WeightFormat, dtype_bytes: float) -> float:
    """Bytes of one number of a matrix; `dtype_bytes` are those of the model's dtype.  The scale of a row is not counted."""
    return _BYTES.get(weight_format, dtype_bytes)
