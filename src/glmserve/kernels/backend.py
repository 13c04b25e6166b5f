"""Triton where it is installed, and which of the two paths a tensor takes.

CPU-only hosts may lack Triton; then `triton.jit` leaves the kernels as plain functions that nobody calls.
With TRITON_INTERPRET=1 the kernels run on CPU tensors, which is how tests without a GPU compare them with their twins.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = SimpleNamespace(jit=lambda function: function, cdiv=lambda a, b: -(-a // b), knobs=None)
    tl = SimpleNamespace(constexpr=None)

__all__ = ["interpreting", "next_power_of_2", "tl", "triton", "use_triton"]


def interpreting() -> bool:
    """True where Triton runs kernels on the CPU (TRITON_INTERPRET=1)."""
    knobs: Any = getattr(triton, "knobs", None)
    return bool(knobs and knobs.runtime.interpret)


def use_triton(tensor: torch.Tensor) -> bool:
    """True where the Triton path serves this tensor."""
    return tensor.is_cuda


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()
