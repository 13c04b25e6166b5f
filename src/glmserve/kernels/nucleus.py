"""A random token from the smallest set that holds `top_p` of the probability, found by a search for its least score: nothing is sorted.

The set and its probabilities are those of a sort (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"); of equal scores at
its edge the first are in.  The draw goes through the set in the order of the vocabulary, so that it needs no sort either.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import use_triton
from glmserve.kernels.nucleus_search import nucleus_ids_triton


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
    if scores.is_cuda:
        kept &= _in_set(scaled, weights, top_p)
    else:
        for row, part in enumerate(top_p[:, 0].tolist()):
            if part < 1:
                _clear_outside_set(kept[row], scaled[row], weights[row], part)
    token_ids = pick(weights * kept, draw)
    return torch.where(valid_rows(scores, masked), token_ids, invalid_id)


def _in_set(scaled: torch.Tensor, weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """bool, the shape of `weights` [rows, vocab_size]: which are in their row's set.  By a sort."""
    order = scaled.argsort(dim=-1, descending=True, stable=True)
    ordered = weights.gather(1, order)
    in_order = (ordered.cumsum(dim=-1) - ordered < top_p * ordered.sum(dim=-1, keepdim=True)) | (top_p >= 1)
    in_order[:, 0] = True
    return torch.empty_like(in_order).scatter_(1, order, in_order)


def _clear_outside_set(kept: torch.Tensor, scaled: torch.Tensor, weights: torch.Tensor, top_p: float) -> None:
    """Clear `kept` [vocab_size] outside the set of one row.  By a sort of those that can be in it, which on a CPU is many times faster."""
    total = float(weights.sum())
    # tokens of less than a V-th of what is left out are out: all of them together have less than that; 0.99 is for rounding
    near = (weights >= 0.99 * total * (1 - top_p) / len(weights)).nonzero()[:, 0]
    near = near[scaled[near].argsort(descending=True, stable=True)]
    ordered = weights[near]
    count = max(1, int((ordered.cumsum(dim=0) - ordered < top_p * total).sum()))
    inside = torch.zeros_like(kept)
    inside[near[:count]] = True
    kept &= inside


def valid_rows(scores: torch.Tensor, masked: bool) -> torch.Tensor:
    """bool [rows]: no NaN and no infinity; -infinity may be where `masked`, but not everywhere."""
    if masked:
        return scores.amax(dim=-1).isfinite()  # NaN is passed on by amax
    return torch.isfinite(scores.sum(dim=-1, dtype=torch.float32))


def pick(weights: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Index of the entry where the cumulated weights pass `draw` (from [0, 1), [num_rows, 1]) of their sum: int64 [num_rows]."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float32)
    # min: rounding must not step past the last entry, whose weight may be zero
    target = torch.minimum(draw * cumulated[:, -1:], cumulated[:, -1:] * (1 - 1e-6))
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)
