"""The matrix product of one row with a weight of 8 or 4 bits: there a single stream waits for instructions as much as for memory.

The weight is read as words of 32 bits.  The levels of a word become pairs of float16 by a few bit operations (as in packed_levels.py) and
meet the row two at a time; the 2 to 4 products of a lane are added in float16, all else in float32.  So that none of them overflows the row
is made smaller on the way and the sum larger again, and what exceeds +-16,384 in the row is taken as that.  The weight is loaded before
the kernel waits for its input.  Twin: `quantized_linear_torch`.
"""

from __future__ import annotations

import torch

from glmserve.kernels.activation import gelu_tanh_of
from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, interpreting, tl, triton
from glmserve.kernels.packed_levels import FP8, INT4, INT8, format_of

_LEVELS_A_WORD = {FP8: 4, INT8: 4, INT4: 8}


def one_row_packed(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    """x W^T + b, then tanh GELU if asked: [1, out_features].

    x: [1, in_features], float16 or bfloat16; weight and scale as in kernels/quantized_linear.py, a row of the weight in whole 16 bytes;
    bias: [out_features].
    """
    form = format_of(weight, scale)
    out_features, words = weight.shape[0], x.shape[1] // _LEVELS_A_WORD[form]
    outputs, most_words = _tile(form, words)
    out = x.new_empty((1, out_features))
    _one_row_packed_kernel[(triton.cdiv(out_features, outputs),)](
        x.view(torch.int32), weight.view(torch.int32), scale, scale if bias is None else bias, out, out_features,
        WORDS=words, TILE=min(most_words, words & -words), OUTPUTS=outputs, FORMAT=form, HAS_BIAS=bias is not None, GELU=gelu,
        BFLOAT16=x.dtype == torch.bfloat16, PLAIN_STEPS=interpreting(), num_warps=4, **early_start(x),
    )  # fmt: skip
    return out


def _tile(form: int, words: int) -> tuple[int, int]:
    """(outputs, words of each at a time): the fastest on an H100 (benchmarks/RESULTS.md, "one row")."""
    return (8, 512) if form == INT4 and words <= 512 else (4, 1024)


@triton.jit
def _one_row_packed_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, out_features,
    WORDS: tl.constexpr, TILE: tl.constexpr, OUTPUTS: tl.constexpr, FORMAT: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    BFLOAT16: tl.constexpr, PLAIN_STEPS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = output < out_features
    word = tl.arange(0, TILE)
    weight_at = weight_ptr + output.to(tl.int64)[:, None] * WORDS + word[None, :]
    weight = tl.load(weight_at, mask=inside[:, None], other=0)
    scale = tl.load(scale_ptr + output, mask=inside, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    total = _products(weight, x_ptr + 2 * word, WORDS, FORMAT, BFLOAT16, PLAIN_STEPS)
    for start in tl.static_range(TILE, WORDS, TILE):
        weight = tl.load(weight_at + start, mask=inside[:, None], other=0)
        total += _products(weight, x_ptr + 2 * (start + word), WORDS, FORMAT, BFLOAT16, PLAIN_STEPS)
    total *= scale * (16.0 if FORMAT == 3 else 256.0)
    if HAS_BIAS:
        total += bias
    if GELU:
        total = gelu_tanh_of(total)
    tl.store(out_ptr + output, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _products(words, x_at, WORDS: tl.constexpr, FORMAT: tl.constexpr, BFLOAT16: tl.constexpr, PLAIN_STEPS: tl.constexpr):
    """Sum over the loaded words, float32 [OUTPUTS], of a row made smaller: by 16 for levels up to 8, by 256 for those up to 448.

    x_at: where the numbers for each word's first levels lie, as words of two numbers; those for int4's high nibbles lie half a row on.
    """
    SHRINK: tl.constexpr = 1.0 / 16 if FORMAT == 3 else 1.0 / 256
    first, second = _pair(tl.load(x_at), SHRINK, BFLOAT16, PLAIN_STEPS), _pair(tl.load(x_at + 1), SHRINK, BFLOAT16, PLAIN_STEPS)
    if FORMAT == 3:
        high_first = _pair(tl.load(x_at + 2 * WORDS), SHRINK, BFLOAT16, PLAIN_STEPS)
        high_second = _pair(tl.load(x_at + 2 * WORDS + 1), SHRINK, BFLOAT16, PLAIN_STEPS)
        if PLAIN_STEPS:
            parts = _nibbles_plain(words, first[None, :], second[None, :], 0)
            parts += _nibbles_plain(words, high_first[None, :], high_second[None, :], 4)
        else:
            parts = _nibbles(
                words, _evens(first, second)[None, :], _odds(first, second)[None, :],
                _evens(high_first, high_second)[None, :], _odds(high_first, high_second)[None, :],
            )  # fmt: skip
    elif PLAIN_STEPS:
        parts = _bytes_plain(words, first[None, :], second[None, :], FORMAT)
    elif FORMAT == 2:
        parts = _int8_bytes(words, first[None, :], second[None, :])
    else:
        parts = _fp8_bytes(words, first[None, :], second[None, :])
    return tl.sum(parts, axis=1)


@triton.jit
def _pair(x, SHRINK: tl.constexpr, BFLOAT16: tl.constexpr, PLAIN_STEPS: tl.constexpr):
    """Two numbers of the row in a word, as float16, times SHRINK (a power of two), none beyond 16384 * SHRINK."""
    LARGEST: tl.constexpr = 16384 * SHRINK
    if PLAIN_STEPS:
        low = tl.minimum(tl.maximum(_low(x) * SHRINK, -LARGEST), LARGEST).to(tl.float16)
        high = tl.minimum(tl.maximum(_high(x) * SHRINK, -LARGEST), LARGEST).to(tl.float16)
        return (low.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF) | (high.to(tl.int16, bitcast=True).to(tl.int32) << 16)
    elif BFLOAT16:
        return tl.inline_asm_elementwise(
            """
            {
                .reg .b32 low, high;
                .reg .f32 first, second, smallest;
                shl.b32 low, $1, 16;
                and.b32 high, $1, 0xffff0000;
                mov.b32 first, low;
                mov.b32 second, high;
                mul.f32 first, first, $2;
                mul.f32 second, second, $2;
                min.f32 first, first, $3;
                min.f32 second, second, $3;
                neg.f32 smallest, $3;
                max.f32 first, first, smallest;
                max.f32 second, second, smallest;
                cvt.rn.f16x2.f32 $0, second, first;
            }
            """,
            "=r,r,f,f", [x, SHRINK, LARGEST], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            """
            {
                .reg .b32 shrink, largest, smallest, small;
                .reg .f32 negative;
                cvt.rn.f16x2.f32 shrink, $2, $2;
                cvt.rn.f16x2.f32 largest, $3, $3;
                neg.f32 negative, $3;
                cvt.rn.f16x2.f32 smallest, negative, negative;
                mul.f16x2 small, $1, shrink;
                min.f16x2 small, small, largest;
                max.f16x2 $0, small, smallest;
            }
            """,
            "=r,r,f,f", [x, SHRINK, LARGEST], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def _evens(first, second):
    """The first of each pair."""
    return tl.inline_asm_elementwise("prmt.b32 $0, $1, $2, 0x5410;", "=r,r,r", [first, second], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _odds(first, second):
    """The second of each pair."""
    return tl.inline_asm_elementwise("prmt.b32 $0, $1, $2, 0x7632;", "=r,r,r", [first, second], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _nibbles(words, evens, odds, high_evens, high_odds):
    """Eight products of int4 levels a word.  A nibble in the low bits of float16's 1024 is n + 1024, four bits further up 16 n + 1024."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 even, odd, high_even, high_odd, next, magic, sum;
            .reg .b16 half0, half1;
            .reg .f32 sum0, sum1;
            mov.b32 magic, 0x64006400;
            shr.u32 next, $1, 8;
            lop3.b32 even, $1, 0x000f000f, magic, 0xea;
            lop3.b32 high_even, $1, 0x00f000f0, magic, 0xea;
            lop3.b32 odd, next, 0x000f000f, magic, 0xea;
            lop3.b32 high_odd, next, 0x00f000f0, magic, 0xea;
            mov.b32 magic, 0x64086408;
            sub.f16x2 even, even, magic;
            sub.f16x2 odd, odd, magic;
            mov.b32 magic, 0x2c002c00;
            mov.b32 next, 0xd480d480;
            fma.rn.f16x2 high_even, high_even, magic, next;
            fma.rn.f16x2 high_odd, high_odd, magic, next;
            mul.f16x2 sum, even, $2;
            fma.rn.f16x2 sum, odd, $3, sum;
            fma.rn.f16x2 sum, high_even, $4, sum;
            fma.rn.f16x2 sum, high_odd, $5, sum;
            mov.b32 {half0, half1}, sum;
            cvt.f32.f16 sum0, half0;
            cvt.f32.f16 sum1, half1;
            add.f32 $0, sum0, sum1;
        }
        """,
        "=f,r,r,r,r,r", [words, evens, odds, high_evens, high_odds], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _int8_bytes(words, first, second):
    """Four products of int8 levels a word."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 low, high, unsigned, magic, sum;
            .reg .b16 half0, half1;
            .reg .f32 sum0, sum1;
            mov.b32 magic, 0x64646464;
            xor.b32 unsigned, $1, 0x80808080;
            prmt.b32 low, unsigned, magic, 0x4140;
            prmt.b32 high, unsigned, magic, 0x4342;
            mov.b32 magic, 0x64806480;
            sub.f16x2 low, low, magic;
            sub.f16x2 high, high, magic;
            mul.f16x2 sum, low, $2;
            fma.rn.f16x2 sum, high, $3, sum;
            mov.b32 {half0, half1}, sum;
            cvt.f32.f16 sum0, half0;
            cvt.f32.f16 sum1, half1;
            add.f32 $0, sum0, sum1;
        }
        """,
        "=f,r,r,r", [words, first, second], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _fp8_bytes(words, first, second):
    """Four products of fp8 levels a word."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 low, high, sum;
            .reg .b16 level0, level1, half0, half1;
            .reg .f32 sum0, sum1;
            mov.b32 {level0, level1}, $1;
            cvt.rn.f16x2.e4m3x2 low, level0;
            cvt.rn.f16x2.e4m3x2 high, level1;
            mul.f16x2 sum, low, $2;
            fma.rn.f16x2 sum, high, $3, sum;
            mov.b32 {half0, half1}, sum;
            cvt.f32.f16 sum0, half0;
            cvt.f32.f16 sum1, half1;
            add.f32 $0, sum0, sum1;
        }
        """,
        "=f,r,r,r", [words, first, second], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


# The same without machine instructions, for Triton's interpreter.


@triton.jit
def _low(pair):
    return pair.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _high(pair):
    return (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _nibbles_plain(words, first, second, SHIFT: tl.constexpr):
    total = (((words >> SHIFT) & 15) - 8).to(tl.float32) * _low(first)
    total += (((words >> (8 + SHIFT)) & 15) - 8).to(tl.float32) * _high(first)
    total += (((words >> (16 + SHIFT)) & 15) - 8).to(tl.float32) * _low(second)
    return total + (((words >> (24 + SHIFT)) & 15) - 8).to(tl.float32) * _high(second)


@triton.jit
def _bytes_plain(words, first, second, FORMAT: tl.constexpr):
    total = _level(words, FORMAT) * _low(first) + _level(words >> 8, FORMAT) * _high(first)
    return total + _level(words >> 16, FORMAT) * _low(second) + _level(words >> 24, FORMAT) * _high(second)


@triton.jit
def _level(words, FORMAT: tl.constexpr):
    level = words.to(tl.int8)
    if FORMAT == 1:
        level = level.to(tl.float8e4nv, bitcast=True)
    return level.to(tl.float32)
