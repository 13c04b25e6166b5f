"""A random token from each row's `top_k` best, thinned by top_p and min_p; on a GPU by a search that sorts 128 scores, not the vocabulary.

Of equal scores the search takes the first of the vocabulary; which ones torch.topk takes, on a CPU or beyond 64, is its own choice, and on
a GPU beyond 64 that may differ with the largest `top_k` of the batch.
The draw goes from the best score downwards.
"""

from __future__ import annotations

import torch

from glmserve.kernels.backend import use_triton
from glmserve.kernels.nucleus import pick, valid_rows
from glmserve.kernels.top_k_search import MAX_TOP_K, best_ids_triton


def best_ids(scores: torch.Tensor, params: torch.Tensor, largest: int, invalid_id: int, masked: bool = False) -> torch.Tensor:
    """int64 [rows]: one token drawn for each row; `invalid_id` for a row with a NaN or an infinity.

    scores: [rows, vocab_size], any float dtype, a dense last axis, no temperature applied; `masked` where -infinity is a legal score, of a
    token that must not be drawn.  params: float32 [5, rows], dense: temperature (above 0), top_p of the mass of the best, min_p, the draw
    from [0, 1), and top_k, from 1 to `largest`; where that is above `MAX_TOP_K`, torch.topk lists the best.
    min_p takes out what is less than that part as likely as the likeliest; the likeliest stays always.
    """
    if largest > MAX_TOP_K or not use_triton(scores):
        return best_ids_torch(scores, params, largest, invalid_id, masked)
    return best_ids_triton(scores, params, invalid_id, masked)


def best_ids_torch(scores: torch.Tensor, params: torch.Tensor, largest: int, invalid_id: int, masked: bool = False) -> torch.Tensor:
    """The plain twin of `best_ids`; which of equal scores are in is torch.topk's choice."""
    temperature, top_p, min_p, draw, top_k = params[:, :, None]
    scaled = scores.float() / temperature
    token_ids = _listed(scaled, top_k[:, 0], min(largest, scores.shape[-1]))
    best = scaled.gather(1, token_ids)
    place = pick(_filtered(best, top_k, top_p, min_p), draw)
    return torch.where(valid_rows(scores, masked), token_ids.gather(1, place[:, None])[:, 0], invalid_id)


def _listed(scores: torch.Tensor, top_k: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [rows, count]: columns of the best of float32 scores, best first, as many as the row's own `top_k`; then any.

    On a CPU a row is listed with those of the same `top_k` alone: which of equal scores torch.topk takes depends on how many it lists.
    """
    if scores.is_cuda:  # to ask which there are would make the GPU wait
        return scores.topk(count, dim=-1).indices
    token_ids = torch.zeros((len(scores), count), dtype=torch.int64)
    for wanted in top_k.clamp(max=count).int().unique().tolist():
        rows = top_k.clamp(max=count) == wanted
        token_ids[rows, :wanted] = scores[rows].topk(wanted, dim=-1).indices
    return token_ids


def _filtered(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Probabilities that survive top-k, top-p and min-p, zero elsewhere; not normalised.

    scores: [rows, k] in descending order, temperature applied; the others [rows, 1].
    Top-p keeps the smallest set whose mass reaches p, at least one token (TopPLogitsWarper in transformers).
    """
    rank = torch.arange(scores.shape[-1], device=scores.device)
    probabilities = torch.softmax(scores.masked_fill(rank >= top_k, float("-inf")), dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    keep = (mass_before < top_p) & (probabilities >= min_p * probabilities[:, :1])
    keep[:, 0] = True
    return probabilities * keep
