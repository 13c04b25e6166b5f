"""The likeliest token of each row of logits, and a stand-in where the scores are not numbers, in one reading of them."""

from __future__ import annotations

import torch

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, tl, triton, use_triton

_BLOCK = 4096


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
    best = logits.new_empty((rows, pieces), dtype=torch.float32)
    index = logits.new_empty((rows, pieces), dtype=torch.int32)
    out = logits.new_empty(rows, dtype=torch.int64)
    early = early_start(logits)
    _best_of_piece_kernel[(rows, pieces)](logits, best, index, logits.stride(0), vocab_size, pieces, BLOCK=_BLOCK, num_warps=8, **early)
    _best_of_row_kernel[(rows,)](best, index, out, pieces, invalid_id, PIECES=next_power_of_2(pieces), num_warps=1, **early)
    return out


@triton.jit
def _best_of_piece_kernel(logits_ptr, best_ptr, index_ptr, row_stride, vocab_size, pieces, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = piece * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab_size
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    score = tl.load(logits_ptr + row * row_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
    wrong = tl.max((inside & ~(tl.abs(score) < float("inf"))).to(tl.int32), axis=0)  # a NaN is not below infinity either
    score = tl.where(inside & (score == score), score, float("-inf"))
    best = tl.max(score, axis=0)
    index = tl.min(tl.where(score == best, column, 2147483647), axis=0)
    tl.store(best_ptr + row * pieces + piece, best)
    tl.store(index_ptr + row * pieces + piece, tl.where(wrong > 0, -1, index))


@triton.jit
def _best_of_row_kernel(best_ptr, index_ptr, out_ptr, pieces, invalid_id, PIECES: tl.constexpr, EARLY: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, PIECES)
    inside = piece < pieces
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    best = tl.load(best_ptr + row * pieces + piece, mask=inside, other=float("-inf"))
    index = tl.load(index_ptr + row * pieces + piece, mask=inside, other=2147483647)
    winner = tl.min(tl.where(inside & (best == tl.max(best, axis=0)), index, 2147483647), axis=0)
    tl.store(out_ptr + row, tl.where(tl.min(index, axis=0) < 0, invalid_id, winner).to(tl.int64))
