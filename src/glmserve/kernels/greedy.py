"""The likeliest token of each row of logits, and a stand-in where the scores are not numbers, in one reading of them."""

from __future__ import annotations

import torch

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, tl, triton, use_triton

_SHIFT = 12
_BLOCK = 1 << _SHIFT
# By the scores' dtype: integers of its size, their largest, and what they say where a score is infinite.
_INTEGERS = {
    torch.float32: (torch.int32, 0x7FFFFFFF, 0x7F800000),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
}


def greedy_ids(logits: torch.Tensor, invalid_id: int) -> torch.Tensor:
    """int64 [rows]: the index of each row's largest score, the first of equal ones; `invalid_id` for a row with a NaN or an infinity.

    logits: [rows, vocab_size], any float dtype, a dense last axis.
    """
    if not use_triton(logits):
        return greedy_ids_torch(logits, invalid_id)
    return greedy_ids_triton(logits, invalid_id)


def greedy_ids_torch(logits: torch.Tensor, invalid_id: int) -> torch.Tensor:
    """The plain twin of `greedy_ids`."""
    valid = torch.isfinite(logits.sum(dim=-1, dtype=torch.float32))
    return torch.where(valid, logits.argmax(dim=-1), invalid_id)


def greedy_ids_triton(logits: torch.Tensor, invalid_id: int) -> torch.Tensor:
    """The Triton path of `greedy_ids`: programs take pieces of a row, a second kernel compares their best."""
    rows, vocab_size = logits.shape
    pieces = triton.cdiv(vocab_size, _BLOCK)
    best = logits.new_empty((rows, pieces), dtype=torch.int64 if logits.itemsize > 2 else torch.int32)
    out = logits.new_empty(rows, dtype=torch.int64)
    integer, largest, infinity = _INTEGERS[logits.dtype]
    early = early_start(logits)
    _best_of_piece_kernel[(rows, pieces)](
        logits.view(integer), best, logits.stride(0), vocab_size, pieces,
        LARGEST=largest, INFINITY=infinity, SHIFT=_SHIFT, num_warps=8, **early,
    )  # fmt: skip
    _best_of_row_kernel[(rows,)](
        best, out, pieces, invalid_id, PIECES=next_power_of_2(pieces), LARGEST=largest, SHIFT=_SHIFT, num_warps=1, **early
    )
    return out


@triton.jit
def _best_of_piece_kernel(
    bits_ptr, best_ptr, row_stride, vocab_size, pieces,
    LARGEST: tl.constexpr, INFINITY: tl.constexpr, SHIFT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The largest of (score, places after it): each pair is one integer, so one comparison finds both.  What is no number is largest."""
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.arange(0, 1 << SHIFT)
    inside = (piece << SHIFT) + place < vocab_size
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    bits = tl.load(bits_ptr + row * row_stride + (piece << SHIFT) + place, mask=inside, other=0).to(best_ptr.dtype.element_ty)
    size = bits & LARGEST  # a float is its sign and its size; both zeros are one
    score = tl.where(size < INFINITY, tl.where(bits < 0, -size, size), LARGEST + 1)
    pair = (score << SHIFT) + ((1 << SHIFT) - 1 - place)
    tl.store(best_ptr + row * pieces + piece, tl.max(tl.where(inside, pair, -(LARGEST << SHIFT)), axis=0))


@triton.jit
def _best_of_row_kernel(
    best_ptr, out_ptr, pieces, invalid_id, PIECES: tl.constexpr, LARGEST: tl.constexpr, SHIFT: tl.constexpr, EARLY: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, PIECES)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    pair = tl.load(best_ptr + row * pieces + piece, mask=piece < pieces, other=-(LARGEST << SHIFT)).to(tl.int64)
    column = ((piece + 1) << SHIFT) - 1 - (pair & ((1 << SHIFT) - 1))
    best = tl.max(((pair >> SHIFT) << 31) + (0x7FFFFFFF - column), axis=0)  # columns are below 2^31
    tl.store(out_ptr + row, tl.where((best >> 31) > LARGEST, invalid_id, 0x7FFFFFFF - (best & 0x7FFFFFFF)))
