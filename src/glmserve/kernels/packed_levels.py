"""Packed levels of 8 and 4 bits as float16, exactly, inside a kernel; the layouts are those of quantized_linear.py.

A float16 of 1024 to 2047 has its integer in its low bits: a byte put there, with 1024 and the offset taken off again, is the number
without any of the slow conversions (after FasterTransformer's interleaved_numeric_conversion).  PLAIN_STEPS does the same without
machine instructions, for Triton's interpreter.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import tl, triton

PLAIN, FP8, INT8, INT4 = range(4)  # the kernels' FORMAT
_FORMATS = {torch.float8_e4m3fn: FP8, torch.int8: INT8, torch.uint8: INT4}


def format_of(weight: torch.Tensor, scale: torch.Tensor | None) -> int:
    """The kernels' FORMAT of a weight; without a scale it is plain numbers."""
    return PLAIN if scale is None else _FORMATS[weight.dtype]


def loadable(weight: torch.Tensor) -> torch.Tensor:
    """The weight as the kernels take it: 8-bit floats as bytes, since loads of integers are pipelined and those of such floats are not."""
    return weight.view(torch.int8) if weight.dtype == torch.float8_e4m3fn else weight


@triton.jit
def levels_of_bytes(level, FORMAT: tl.constexpr, PLAIN_STEPS: tl.constexpr):
    """The levels of fp8 (1) or int8 (2)."""
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
def levels_of_nibbles(packed, PLAIN_STEPS: tl.constexpr):
    """(low, high) levels of int4 bytes."""
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
