"""The search behind `nucleus_ids` on a GPU: where the set of top_p ends, and which of its tokens the draw falls on, without a sort."""

from __future__ import annotations

import torch

from glmserve.kernels.backend import early_start, gdc_launch_dependents, gdc_wait, next_power_of_2, tl, triton
from glmserve.kernels.score_keys import LOW_ZEROS, key_of, score_of

_BLOCK, _WARPS = 8192, 8
_WAYS = 8  # least scores tried in one reading of the row


def nucleus_ids_triton(scores: torch.Tensor, params: torch.Tensor, invalid_id: int, masked: bool = False) -> torch.Tensor:
    """As `nucleus_ids`.  Every launch gives each piece of each row to a program, which begins with what the launch before
    it found out about the row's pieces: first the best score and the sum, then, interval by interval, where the set ends."""
    rows, vocab_size = scores.shape
    low_zeros = LOW_ZEROS[scores.dtype]
    pieces, passes = triton.cdiv(vocab_size, _BLOCK), _passes(32 - low_zeros)
    parts = params.new_empty((rows, pieces, 3))  # best score, least score, sum of weights; at last the mass above the edge, ties at it
    facts = params.new_empty((rows, 3))  # best score, least score, sum of weights
    # after each pass: the interval of keys, [low, high), and the mass from high on; 4 columns for 3, so that each begins at 16 bytes
    state = params.new_empty((passes + 1, rows, 4), dtype=torch.float64)
    masses = params.new_empty((passes, rows, pieces, _WAYS))  # of a piece, from each limit on
    out = params.new_empty(rows, dtype=torch.int64)
    early = early_start(scores)
    shape = {"BLOCK": _BLOCK, "PIECES": next_power_of_2(pieces), **early}
    search = {"WAYS": _WAYS, "LOW_ZEROS": low_zeros, **shape}
    common = (scores, params, scores.stride(0), vocab_size, rows)
    _measure_kernel[(rows, pieces)](*common, parts, pieces, BLOCK=_BLOCK, num_warps=_WARPS, **early)
    for number in range(passes):
        before = max(number - 1, 0)
        _search_kernel[(rows, pieces)](
            *common, parts, facts, state[before], masses[before], state[number], masses[number], pieces,
            FIRST=number == 0, num_warps=_WARPS, **search,
        )  # fmt: skip
    _weigh_kernel[(rows, pieces)](*common, parts, facts, state[-2], masses[-1], state[-1], pieces, num_warps=_WARPS, **search)
    _choose_kernel[(rows,)](
        *common, parts, facts, state[-1], out, pieces, invalid_id, masked, LOW_ZEROS=low_zeros, num_warps=_WARPS, **shape
    )
    return out


def _passes(bits: int) -> int:
    """How many readings narrow an interval of 2 ** bits keys down to one."""
    count, size = 0, 2**bits
    while size > 1:
        count, size = count + 1, -(-size // (_WAYS + 1))
    return count


@triton.jit(do_not_specialize=["rows"])
def _measure_kernel(
    scores_ptr, params_ptr, row_stride, vocab_size, rows, parts_ptr, pieces, BLOCK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """The best and the least score of a piece, and the sum of its weights beside its best."""
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    rate = 1.4426950408889634 / tl.load(params_ptr + row)
    column = piece * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab_size
    score = tl.load(scores_ptr + row * row_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
    best = tl.max(score, axis=0)
    base = tl.where(best > float("-inf"), best, 0.0)  # all masked
    part_at = parts_ptr + (row * pieces + piece) * 3
    tl.store(part_at, best)
    tl.store(part_at + 1, tl.min(tl.where(inside, score, float("inf")), axis=0))
    tl.store(part_at + 2, tl.sum(_weight(score, base, rate), axis=0))


@triton.jit(do_not_specialize=["rows"])
def _search_kernel(
    scores_ptr, params_ptr, row_stride, vocab_size, rows, parts_ptr, facts_ptr, state_before_ptr, masses_before_ptr,
    state_ptr, masses_ptr, pieces,
    FIRST: tl.constexpr, WAYS: tl.constexpr, LOW_ZEROS: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Narrow the interval of the set's least score by the masses found before, and find a piece's masses for the next time."""
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    temperature, top_p = tl.load(params_ptr + row), tl.load(params_ptr + rows + row)
    rate = 1.4426950408889634 / temperature  # weights are powers of 2
    if FIRST:
        best, least, total = _row_of_parts(parts_ptr + row * pieces * 3, rate, pieces, PIECES)
        high, mass_above = (key_of(best, LOW_ZEROS) + 1).to(tl.int64), 0.0
        low = high - 1
        if top_p < 1:
            # Tokens of less than a V-th of what is left out are out: all of them together have less than that.  The 1 is for rounding.
            low = key_of(best + temperature * (tl.log(total * (1 - top_p) / vocab_size) - 1), LOW_ZEROS).to(tl.int64)
        if piece == 0:
            tl.store(facts_ptr + row * 3, best)
            tl.store(facts_ptr + row * 3 + 1, least)
            tl.store(facts_ptr + row * 3 + 2, total)
    else:
        best, total = tl.load(facts_ptr + row * 3), tl.load(facts_ptr + row * 3 + 2)
        low, high, mass_above = _narrowed(
            state_before_ptr + row * 4,
            masses_before_ptr + row * pieces * WAYS,
            top_p * total,
            pieces,
            WAYS,
            PIECES,
        )
    if piece == 0:
        _store_interval(state_ptr + row * 4, low, high, mass_above)
    if high - low > 1:
        score, weight = _read(scores_ptr + row * row_stride, piece, vocab_size, best, rate, BLOCK)
        limits, inside = _limits(low, high, WAYS)
        limits = score_of(tl.where(inside, limits, low), LOW_ZEROS)
        masses = tl.sum(tl.where(score[None, :] >= limits[:, None], weight[None, :], 0.0), axis=1)
        tl.store(masses_ptr + (row * pieces + piece) * WAYS + tl.arange(0, WAYS), masses)


@triton.jit(do_not_specialize=["rows"])
def _weigh_kernel(
    scores_ptr, params_ptr, row_stride, vocab_size, rows, parts_ptr, facts_ptr, state_before_ptr, masses_before_ptr,
    state_ptr, pieces,
    WAYS: tl.constexpr, LOW_ZEROS: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The mass of a piece above the edge of the set, and how many tokens are at the edge."""
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    rate, top_p = 1.4426950408889634 / tl.load(params_ptr + row), tl.load(params_ptr + rows + row)
    min_p = tl.load(params_ptr + 2 * rows + row)
    best, total = tl.load(facts_ptr + row * 3), tl.load(facts_ptr + row * 3 + 2)
    low, high, mass_above = _narrowed(
        state_before_ptr + row * 4, masses_before_ptr + row * pieces * WAYS, top_p * total, pieces, WAYS, PIECES
    )
    if piece == 0:
        _store_interval(state_ptr + row * 4, low, high, mass_above)
    edge = tl.where(top_p < 1, score_of(low, LOW_ZEROS), float("-inf"))
    score, weight = _read(scores_ptr + row * row_stride, piece, vocab_size, best, rate, BLOCK)
    part_at = parts_ptr + (row * pieces + piece) * 3
    tl.store(part_at, tl.sum(tl.where((score > edge) & (weight >= min_p), weight, 0.0), axis=0))
    tl.store(part_at + 1, tl.sum((score == edge).to(tl.float32), axis=0))


@triton.jit(do_not_specialize=["rows", "invalid_id"])
def _choose_kernel(
    scores_ptr, params_ptr, row_stride, vocab_size, rows, parts_ptr, facts_ptr, state_ptr, out_ptr, pieces, invalid_id, masked,
    LOW_ZEROS: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """First the piece that the draw falls in, then the token."""
    row = tl.program_id(0).to(tl.int64)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    rate, top_p = 1.4426950408889634 / tl.load(params_ptr + row), tl.load(params_ptr + rows + row)
    min_p, draw = tl.load(params_ptr + 2 * rows + row), tl.load(params_ptr + 3 * rows + row)
    best, least, total = tl.load(facts_ptr + row * 3), tl.load(facts_ptr + row * 3 + 1), tl.load(facts_ptr + row * 3 + 2)
    edge = score_of(tl.load(state_ptr + row * 4), LOW_ZEROS)
    edge_weight = _weight(edge, best, rate)
    ties = tl.maximum(
        tl.ceil((top_p * total - tl.load(state_ptr + row * 4 + 2).to(tl.float32)) / edge_weight), 1.0
    )  # so many tokens at the edge are in
    if top_p >= 1:
        edge, ties = float("-inf"), 0.0

    places = tl.arange(0, PIECES)
    part_at = parts_ptr + (row * pieces + places) * 3
    mass = tl.load(part_at, mask=places < pieces, other=0.0)
    tied = tl.load(part_at + 1, mask=places < pieces, other=0.0)
    ties_before = tl.cumsum(tied, axis=0) - tied
    tied_in = tl.minimum(tl.maximum(ties - ties_before, 0.0), tied)
    mass += tl.where(edge_weight >= min_p, tied_in * edge_weight, 0.0)
    cumulated = tl.cumsum(mass, axis=0)
    whole = tl.max(cumulated, axis=0)
    target = tl.minimum(draw * whole, whole * (1 - 1e-6))
    passed = (cumulated > target) & (mass > 0)
    piece = tl.minimum(tl.min(tl.where(passed, places, PIECES), axis=0), tl.max(tl.where(mass > 0, places, 0), axis=0))
    target -= tl.sum(tl.where(places < piece, mass, 0.0), axis=0)
    ties -= tl.sum(tl.where(places < piece, tied, 0.0), axis=0)

    score, weight = _read(scores_ptr + row * row_stride, piece, vocab_size, best, rate, BLOCK)
    at_edge = score == edge
    within = (score > edge) | (at_edge & (tl.cumsum(at_edge.to(tl.float32), axis=0) <= ties))
    kept = tl.where(within & (weight >= min_p), weight, 0.0)
    column = piece * BLOCK + tl.arange(0, BLOCK)
    token = tl.min(tl.where((tl.cumsum(kept, axis=0) > target) & (kept > 0), column, 2147483647), axis=0)
    last = tl.max(tl.where(kept > 0, column, 0), axis=0)  # where rounding left the target above the piece's mass
    valid = (total == total) & (tl.abs(best) < float("inf")) & (masked | (least > float("-inf")))
    tl.store(out_ptr + row, tl.where(valid, tl.minimum(token, last), invalid_id).to(tl.int64))


@triton.jit
def _row_of_parts(part_at, rate, pieces, PIECES: tl.constexpr):
    """The row's best and least score, and the sum of its weights."""
    place = tl.arange(0, PIECES)
    inside = place < pieces
    bests = tl.load(part_at + place * 3, mask=inside, other=float("-inf"))
    least = tl.min(tl.load(part_at + place * 3 + 1, mask=inside, other=float("inf")), axis=0)
    totals = tl.load(part_at + place * 3 + 2, mask=inside, other=0.0)
    best = tl.max(bests, axis=0)
    return best, least, tl.sum(totals * _weight(bests, best, rate), axis=0)


@triton.jit
def _narrowed(state_at, masses_at, wanted, pieces, WAYS: tl.constexpr, PIECES: tl.constexpr):
    """The interval [low, high) of keys in which the mass of a key and all above it falls below `wanted`, and the mass from `high` on."""
    low, high = tl.load(state_at).to(tl.int64), tl.load(state_at + 1).to(tl.int64)
    mass_above = tl.load(state_at + 2).to(tl.float32)
    if high - low > 1:
        place, way = tl.arange(0, PIECES), tl.arange(0, WAYS)
        masses = tl.load(masses_at + place[:, None] * WAYS + way[None, :], mask=(place < pieces)[:, None], other=0.0)
        masses = tl.sum(masses, axis=0)
        limits, inside = _limits(low, high, WAYS)
        enough = inside & (masses >= wanted)
        step = _step(low, high, WAYS)
        low = tl.max(tl.where(enough, limits, low), axis=0)
        mass_above = tl.max(tl.where(inside & ~enough, masses, mass_above), axis=0)  # the mass falls as the limit rises
        high = tl.minimum(low + step, high)
    return low, high, mass_above


@triton.jit
def _limits(low, high, WAYS: tl.constexpr):
    limits = low + (tl.arange(0, WAYS) + 1) * _step(low, high, WAYS)
    return limits, limits < high


@triton.jit
def _step(low, high, WAYS: tl.constexpr):
    return (high - low + WAYS) // (WAYS + 1)


@triton.jit
def _store_interval(state_at, low, high, mass_above):
    tl.store(state_at, low.to(tl.float64))
    tl.store(state_at + 1, high.to(tl.float64))
    tl.store(state_at + 2, mass_above)


@triton.jit
def _read(scores_ptr, piece, vocab_size, best, rate, BLOCK: tl.constexpr):
    column = piece * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores_ptr + column, mask=column < vocab_size, other=float("-inf")).to(tl.float32)
    return score, _weight(score, best, rate)


@triton.jit
def _weight(score, best, rate):
    return tl.exp2((score - best) * rate)
