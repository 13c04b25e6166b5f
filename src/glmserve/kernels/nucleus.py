"""A random token from the smallest set that holds `top_p` of the probability, found by a search for its least score: nothing is sorted.

The set and its probabilities are those of a sort (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"); of equal scores at
its edge the first are in.  The draw goes through the set in the order of the vocabulary, so that it needs no sort either.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import next_power_of_2, tl, triton, use_triton

_BLOCK = 8192
_WAYS = 16  # least scores tried in one reading of the row
_LOW_ZEROS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # bits that are always zero once the score is in float32


def nucleus_ids(scores: torch.Tensor, params: torch.Tensor, invalid_id: int, masked: bool = False) -> torch.Tensor:
    """int64 [rows]: one token drawn for each row; `invalid_id` for a row with a NaN or an infinity.

    scores: [rows, vocab_size], any float dtype, a dense last axis, no temperature applied; `masked` where -infinity is a legal score, of a
    token that must not be drawn.  params: float32 [4, rows], dense: temperature (above 0), top_p, min_p, and the draw from [0, 1).
    min_p takes out what is less than that part as likely as the likeliest; the likeliest stays always.
    """
    if not use_triton(scores):
        return nucleus_ids_torch(scores, params, invalid_id, masked)
    return nucleus_ids_triton(scores, params, invalid_id, masked)


def nucleus_ids_torch(scores: torch.Tensor, params: torch.Tensor, invalid_id: int, masked: bool = False) -> torch.Tensor:
    """The plain twin of `nucleus_ids`."""
    temperature, top_p, min_p, draw = params[:, :, None]
    scaled = scores.float() / temperature
    weights = (scaled - scaled.amax(dim=-1, keepdim=True)).exp()
    kept = weights >= min_p
    if (top_p < 1).any():
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        mass_before = ordered.cumsum(dim=-1) - ordered
        in_order = (mass_before < top_p * ordered.sum(dim=-1, keepdim=True)) | (top_p >= 1)
        in_order[:, 0] = True
        kept &= torch.empty_like(in_order).scatter_(1, order, in_order)
    token_ids = pick(weights * kept, draw)
    return torch.where(_valid(scores, masked), token_ids, invalid_id)


def _valid(scores: torch.Tensor, masked: bool) -> torch.Tensor:
    if masked:
        return scores.amax(dim=-1).isfinite()  # NaN is passed on by amax
    return torch.isfinite(scores.sum(dim=-1, dtype=torch.float32))


def pick(weights: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Index of the entry where the cumulated weights pass `draw` (from [0, 1), [num_rows, 1]) of their sum: int64 [num_rows]."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float32)
    # min: rounding must not step past the last entry, whose weight may be zero
    target = torch.minimum(draw * cumulated[:, -1:], cumulated[:, -1:] * (1 - 1e-6))
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)


def nucleus_ids_triton(scores: torch.Tensor, params: torch.Tensor, invalid_id: int, masked: bool = False) -> torch.Tensor:
    """The Triton path of `nucleus_ids`: one program a row, which reads it four to seven times, from the L2 cache but for the first."""
    rows, vocab_size = scores.shape
    out = scores.new_empty(rows, dtype=torch.int64)
    _nucleus_kernel[(rows,)](
        scores, params, out, scores.stride(0), vocab_size, rows, invalid_id, masked, LOW_ZEROS=_LOW_ZEROS[scores.dtype], BLOCK=_BLOCK,
        CHUNKS=next_power_of_2(triton.cdiv(vocab_size, _BLOCK)), WAYS=_WAYS, num_warps=16,
    )  # fmt: skip
    return out


@triton.jit
def _nucleus_kernel(
    scores_ptr, params_ptr, out_ptr, row_stride, vocab_size, rows, invalid_id, masked,
    LOW_ZEROS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * row_stride
    temperature, top_p = tl.load(params_ptr + row), tl.load(params_ptr + rows + row)
    min_p, draw = tl.load(params_ptr + 2 * rows + row), tl.load(params_ptr + 3 * rows + row)
    rate = 1.4426950408889634 / temperature  # weights are powers of 2
    best, least, total = _best_and_total(scores_ptr, vocab_size, rate, BLOCK)

    # The edge of the set: the largest score that has, with all above it, top_p of the mass.  Its key lies in [low, high).
    high, wanted, mass_above = (_key(best, LOW_ZEROS) + 1).to(tl.int64), top_p * total, 0.0
    low = high - 1
    if top_p < 1:
        # Tokens of less than a V-th of what is left out are out: all of them together have less than that.  The 1 is for rounding.
        low = _key(best + temperature * (tl.log(total * (1 - top_p) / vocab_size) - 1), LOW_ZEROS).to(tl.int64)
    while high - low > 1:
        step = tl.maximum((high - low + WAYS) // (WAYS + 1), 1)
        limits = low + (tl.arange(0, WAYS) + 1) * step
        inside = limits < high
        masses = _masses_from(scores_ptr, vocab_size, best, rate, _score_of(tl.where(inside, limits, low), LOW_ZEROS), BLOCK, WAYS)
        enough = inside & (masses >= wanted)
        low = tl.max(tl.where(enough, limits, low), axis=0)
        mass_above = tl.max(tl.where(inside & ~enough, masses, mass_above), axis=0)  # the mass falls as the limit rises
        high = tl.minimum(low + step, high)
    edge = _score_of(low, LOW_ZEROS)
    edge_weight = _weight(edge, best, rate)
    ties = tl.maximum(tl.ceil((wanted - mass_above) / edge_weight), 1.0)  # so many tokens at the edge are in
    if top_p >= 1:
        edge, ties = float("-inf"), 0.0

    # The draw: first the chunk it falls in, then the token.
    chunks = tl.arange(0, CHUNKS)
    sums, ties_before, seen = tl.zeros((CHUNKS,), tl.float32), tl.zeros((CHUNKS,), tl.float32), 0.0
    for chunk in range(tl.cdiv(vocab_size, BLOCK)):
        score, weight = _read(scores_ptr, chunk, vocab_size, best, rate, BLOCK)
        above = tl.sum(tl.where((score > edge) & (weight >= min_p), weight, 0.0), axis=0)
        tied = tl.sum((score == edge).to(tl.float32), axis=0)
        tied_in = tl.minimum(tl.maximum(ties - seen, 0.0), tied)
        sums = tl.where(chunks == chunk, above + tl.where(edge_weight >= min_p, tied_in * edge_weight, 0.0), sums)
        ties_before = tl.where(chunks == chunk, seen, ties_before)
        seen += tied
    cumulated = tl.cumsum(sums, axis=0)
    mass = tl.max(cumulated, axis=0)
    target = tl.minimum(draw * mass, mass * (1 - 1e-6))
    passed = (cumulated > target) & (sums > 0)
    chunk = tl.minimum(tl.min(tl.where(passed, chunks, CHUNKS), axis=0), tl.max(tl.where(sums > 0, chunks, 0), axis=0))
    target -= tl.sum(tl.where(chunks < chunk, sums, 0.0), axis=0)
    seen = tl.sum(tl.where(chunks == chunk, ties_before, 0.0), axis=0)
    score, weight = _read(scores_ptr, chunk, vocab_size, best, rate, BLOCK)
    at_edge = score == edge
    within = (score > edge) | (at_edge & (seen + tl.cumsum(at_edge.to(tl.float32), axis=0) <= ties))
    kept = tl.where(within & (weight >= min_p), weight, 0.0)
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    token = tl.min(tl.where((tl.cumsum(kept, axis=0) > target) & (kept > 0), column, 2147483647), axis=0)
    last = tl.max(tl.where(kept > 0, column, 0), axis=0)  # where rounding left the target above the chunk's sum
    valid = (total == total) & (tl.abs(best) < float("inf")) & (masked | (least > float("-inf")))
    tl.store(out_ptr + row, tl.where(valid, tl.minimum(token, last), invalid_id).to(tl.int64))


@triton.jit
def _best_and_total(scores_ptr, vocab_size, rate, BLOCK: tl.constexpr):
    """The row's largest and least score, and the sum of its weights."""
    best, least, total = float("-inf"), float("inf"), 0.0
    for chunk in range(tl.cdiv(vocab_size, BLOCK)):
        column = chunk * BLOCK + tl.arange(0, BLOCK)
        inside = column < vocab_size
        score = tl.load(scores_ptr + column, mask=inside, other=float("-inf")).to(tl.float32)
        least = tl.minimum(least, tl.min(tl.where(inside, score, float("inf")), axis=0))
        now = tl.maximum(best, tl.max(score, axis=0))
        base = tl.where(now > float("-inf"), now, 0.0)  # all masked so far
        total = total * _weight(best, base, rate) + tl.sum(_weight(score, base, rate), axis=0)
        best = now
    return best, least, total


@triton.jit
def _masses_from(scores_ptr, vocab_size, best, rate, limits, BLOCK: tl.constexpr, WAYS: tl.constexpr):
    """[WAYS]: the mass of all tokens with at least each of these scores."""
    masses = tl.zeros((WAYS,), tl.float32)
    for chunk in range(tl.cdiv(vocab_size, BLOCK)):
        score, weight = _read(scores_ptr, chunk, vocab_size, best, rate, BLOCK)
        masses += tl.sum(tl.where(score[None, :] >= limits[:, None], weight[None, :], 0.0), axis=1)
    return masses


@triton.jit
def _read(scores_ptr, chunk, vocab_size, best, rate, BLOCK: tl.constexpr):
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores_ptr + column, mask=column < vocab_size, other=float("-inf")).to(tl.float32)
    return score, _weight(score, best, rate)


@triton.jit
def _weight(score, best, rate):
    return tl.exp2((score - best) * rate)


@triton.jit
def _key(score, LOW_ZEROS: tl.constexpr):
    """int32, ordered as the scores are."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0, its equal
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> LOW_ZEROS


@triton.jit
def _score_of(key, LOW_ZEROS: tl.constexpr):
    bits = key.to(tl.int32) << LOW_ZEROS
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
