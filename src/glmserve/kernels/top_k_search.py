"""The search behind `best_ids` on a GPU: the row is read once, and of it only 128 scores are sorted.

The row is cut into groups of 16 neighbours and these into sections of 16 groups.  At least k scores are no less than the k-th best of the
sections' best scores, so the k best are all in sections whose best is no less than that; then the same among the groups of these sections,
and among the scores of the groups left.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, tl, triton
from glmserve.kernels.score_keys import LOW_ZEROS, key_of, score_of

MAX_TOP_K = 64  # what is looked for, whatever a row's own top_k, so that there is one kernel to compile
_MOST = 2 * MAX_TOP_K  # kept of sections, groups, scores; the room spares a search its last steps and is there for equal scores
_FAN = 16
_BLOCK = 8192


def best_ids_triton(scores: torch.Tensor, params: torch.Tensor, invalid_id: int, masked: bool = False) -> torch.Tensor:
    """As `best_ids` where no row's top_k is above `MAX_TOP_K`.  The first kernel, with a program for each piece of each row, finds the best
    of every group and section; the second, with a program for each row, does the rest."""
    rows, vocab_size = scores.shape
    pieces = triton.cdiv(vocab_size, _BLOCK)
    num_sections = pieces * (_BLOCK // _FAN**2)
    groups = scores.new_empty((rows, num_sections * _FAN))  # the best score of each; infinity where one is not valid
    sections = scores.new_empty((rows, num_sections))
    kept = params.new_empty((rows, 3, _MOST), dtype=torch.int64)  # sections, groups, scores with their columns
    out = params.new_empty(rows, dtype=torch.int64)
    early = early_start(scores)
    common = (scores, scores.stride(0), vocab_size, groups, sections, num_sections)
    _measure_kernel[(rows, pieces)](*common, masked, FAN=_FAN, BLOCK=_BLOCK, num_warps=8, **early)
    _draw_kernel[(rows,)](
        *common, params, rows, kept, out, invalid_id, LOW_ZEROS=LOW_ZEROS[scores.dtype], FAN=_FAN, SECTIONS=next_power_of_2(num_sections),
        WANTED=MAX_TOP_K, MOST=_MOST, num_warps=8, **early,
    )  # fmt: skip
    return out


@triton.jit
def _measure_kernel(
    scores_ptr, row_stride, vocab_size, groups_ptr, sections_ptr, num_sections, masked,
    FAN: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The best score of each group and section of a piece, infinity where a score is not valid."""
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    group = piece * (BLOCK // FAN) + tl.arange(0, BLOCK // FAN)
    column = group[:, None] * FAN + tl.arange(0, FAN)[None, :]
    inside = column < vocab_size
    score = tl.load(scores_ptr + row * row_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
    valid = (score < float("inf")) & ((score > float("-inf")) | masked | ~inside)  # a NaN is not below infinity either
    best = tl.max(tl.where(valid, score, float("inf")), axis=1)
    tl.store(groups_ptr + row * num_sections * FAN + group, best)
    section = piece * (BLOCK // FAN // FAN) + tl.arange(0, BLOCK // FAN // FAN)
    tl.store(sections_ptr + row * num_sections + section, tl.max(tl.reshape(best, (BLOCK // FAN // FAN, FAN)), axis=1))


@triton.jit(do_not_specialize=["rows", "invalid_id"])
def _draw_kernel(
    scores_ptr, row_stride, vocab_size, groups_ptr, sections_ptr, num_sections, params_ptr, rows, kept_ptr, out_ptr, invalid_id,
    LOW_ZEROS: tl.constexpr, FAN: tl.constexpr, SECTIONS: tl.constexpr, WANTED: tl.constexpr, MOST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """From sections to groups to scores, each in the order of the vocabulary; those sorted, filtered, and one drawn."""
    row = tl.program_id(0).to(tl.int64)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    section = tl.arange(0, SECTIONS)
    value = tl.load(sections_ptr + row * num_sections + section, mask=section < num_sections, other=float("-inf")).to(tl.float32)
    best = tl.max(value, axis=0)
    # Sections behind the row's end would only begin the search far below, except where the row's own are too few.
    counted = (section * FAN * FAN < vocab_size) | (vocab_size <= (WANTED - 1) * FAN * FAN)
    limit = key_of(tl.min(tl.where(counted, value, best), axis=0), LOW_ZEROS).to(tl.int64)
    end = key_of(best, LOW_ZEROS).to(tl.int64) + 1
    limit = _limit(value, limit, end, WANTED, MOST, LOW_ZEROS)
    kept_at = kept_ptr + row * 3 * MOST
    num_kept = _keep(value, limit, section, kept_at, MOST, LOW_ZEROS)

    group = _parts(kept_at, num_kept, num_sections, MOST, FAN)
    groups_at = groups_ptr + row * num_sections * FAN + group
    value = tl.load(groups_at, mask=group < num_sections * FAN, other=float("-inf")).to(tl.float32)
    limit = _limit(value, limit, end, WANTED, MOST, LOW_ZEROS)
    num_kept = _keep(value, limit, group, kept_at + MOST, MOST, LOW_ZEROS)

    column = _parts(kept_at + MOST, num_kept, num_sections * FAN, MOST, FAN)
    score = tl.load(scores_ptr + row * row_stride + column, mask=column < vocab_size, other=float("-inf")).to(tl.float32)
    score = tl.where(score == 0, 0.0, score)  # -0 is 0, but for its key
    limit = _limit(score, limit, end, WANTED, MOST, LOW_ZEROS)
    packed = (key_of(score, LOW_ZEROS).to(tl.int64) << 32) | (0x7FFFFFFF - column)  # of equal scores the first is the largest
    num_kept = _keep(score, limit, packed, kept_at + 2 * MOST, MOST, LOW_ZEROS)

    rank = tl.arange(0, MOST)
    packed = tl.load(kept_at + 2 * MOST + rank, mask=rank < num_kept, other=-(2**63))
    packed = tl.sort(packed, descending=True)
    chosen = _draw(score_of(packed >> 32, LOW_ZEROS), rank, best, params_ptr + row, rows, MOST)
    token = tl.sum(tl.where(rank == chosen, 0x7FFFFFFF - (packed & 0x7FFFFFFF), 0), axis=0)
    tl.store(out_ptr + row, tl.where(tl.abs(best) < float("inf"), token, invalid_id))


@triton.jit
def _limit(values, low, end, WANTED: tl.constexpr, MOST: tl.constexpr, LOW_ZEROS: tl.constexpr):
    """A key that WANTED values reach and no more than MOST, or the WANTED-th best itself where too many are equal to it.

    `low`: a key that WANTED values reach, or the least of all; `end`: one that none reaches.
    """
    count = tl.sum((values >= score_of(low, LOW_ZEROS)).to(tl.int32), axis=0)
    while (count > MOST) & (end - low > 1):
        middle = (low + end) >> 1
        reached = tl.sum((values >= score_of(middle, LOW_ZEROS)).to(tl.int32), axis=0)
        enough = reached >= WANTED
        low, end = tl.where(enough, middle, low), tl.where(enough, end, middle)
        count = tl.where(enough, reached, count)
    return low


@triton.jit
def _keep(values, limit, what, kept_at, MOST: tl.constexpr, LOW_ZEROS: tl.constexpr):
    """Store `what` belongs to the values above the limit and to the first ones at it, in their order, MOST in all; how many these are."""
    limit_score = score_of(limit, LOW_ZEROS)
    above, at_limit = values > limit_score, values == limit_score
    so_far = tl.cumsum(above.to(tl.int32) | (at_limit.to(tl.int32) << 12), axis=0)  # two counts in one; those above are at most MOST
    in_all = tl.max(so_far, axis=0)
    room = MOST - (in_all & 0xFFF)
    place = (so_far & 0xFFF) + tl.minimum(so_far >> 12, room) - 1
    tl.store(kept_at + place, what.to(tl.int64), mask=above | (at_limit & ((so_far >> 12) <= room)))
    tl.debug_barrier()  # other threads than stored them load them
    return (in_all & 0xFFF) + tl.minimum(in_all >> 12, room)


@triton.jit
def _parts(kept_at, num_kept, beyond, MOST: tl.constexpr, FAN: tl.constexpr):
    """int32 [MOST * FAN]: the parts of what was kept, in order; behind them parts of `beyond`, which is outside the row."""
    place = tl.arange(0, MOST * FAN)
    whole = tl.load(kept_at + place // FAN, mask=place < num_kept * FAN, other=beyond)
    return whole.to(tl.int32) * FAN + place % FAN


@triton.jit
def _draw(score, rank, best, params_at, rows, MOST: tl.constexpr):
    """The rank that the draw falls on.  Every filter keeps the first so many ranks, so what is kept has no gap."""
    rate, top_p = 1.4426950408889634 / tl.load(params_at), tl.load(params_at + rows)  # weights are powers of 2
    min_p, draw, top_k = tl.load(params_at + 2 * rows), tl.load(params_at + 3 * rows), tl.load(params_at + 4 * rows)
    weight = tl.where(rank < top_k, tl.exp2((score - best) * rate), 0.0)
    mass = tl.cumsum(weight, axis=0)
    kept = (weight > 0) & (weight >= min_p) & (mass - weight < top_p * tl.max(mass, axis=0)) | (rank == 0)
    whole = tl.max(tl.where(kept, mass, 0.0), axis=0)
    target = tl.minimum(draw * whole, whole * (1 - 1e-6))
    last = tl.max(tl.where(kept, rank, 0), axis=0)  # where rounding left the target above all
    return tl.minimum(tl.min(tl.where(kept & (mass > target), rank, MOST), axis=0), last)
