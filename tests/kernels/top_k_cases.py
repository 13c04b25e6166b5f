"""The search for the best top_k and the draw from them, held to a sort in float64; the same for the kernels and for their twin."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from glmserve.kernels import top_k, top_k_search
from tests.kernels.cases import Device

_MOST = top_k_search.MAX_TOP_K
_new_empty = torch.Tensor.new_empty


def check_top_k(on: Device, vocab_size: int, spread: float) -> None:
    """Rows of every kind and mixture of parameters: the token is among the best and where the draw points, both counted in float64."""
    rows = 48 if on.name == "cuda" else 12  # the interpreter takes a quarter of a second a row
    params = random_params(on, rows)
    scores = torch.full((rows, vocab_size + 24), float("nan"), dtype=on.dtype, device=on.name)[:, :vocab_size]  # rows that lie apart
    scores.copy_(on.randn(rows, vocab_size) * spread)
    scores[::2] -= 3 * spread
    scores[::3] = scores[::3].round(decimals=0)  # many equal scores, also at the edge
    scores[::5, 1:-1:2] = -float("inf")
    scores[1, 3:] = -float("inf")  # fewer than top_k
    scores[4], scores[7] = scores[4].sort().values, scores[7].sort(descending=True).values  # the best are neighbours
    tokens = best_ids(scores, params, masked=True)
    assert_drawn_from_the_best("kernel", scores, params, tokens)
    assert_drawn_from_the_best("twin", scores, params, top_k.best_ids_torch(scores, params, _MOST, -7, masked=True), any_order=True)
    bad = scores[2:3].repeat(5, 1)
    bad[0, 0], bad[1, -1], bad[2, 1], bad[4] = float("nan"), float("inf"), -float("inf"), scores[3]
    same = params[:, [2, 2, 2, 2, 3]].contiguous()
    good = tokens[2:4].tolist()
    assert best_ids(bad, same).tolist() == [-7, -7, -7, *good]
    assert top_k.best_ids_torch(bad, same, _MOST, -7)[:3].tolist() == [-7] * 3
    bad[3] = -float("inf")
    assert best_ids(bad[[0, 1, 3, 4]], same[:, 1:].contiguous(), masked=True).tolist() == [-7, -7, -7, good[1]]
    assert top_k.best_ids_torch(bad[[0, 1, 3]], same[:, :3], _MOST, -7, masked=True).tolist() == [-7] * 3


def check_top_k_of_ties(on: Device, vocab_size: int) -> None:
    """Few levels of scores, each in every piece of a row; all equal; zeros of both signs: of equal ones the first are in, in order."""
    rows = 16 if on.name == "cuda" else 4
    scores = (on.randint(4, rows, vocab_size) - on.randint(6, rows, 1)).to(on.dtype)
    scores[0] = 1.5
    scores[1, ::2], scores[1, 1::2] = 0.0, -0.0
    params = random_params(on, rows)
    assert_drawn_from_the_best("kernel", scores, params, best_ids(scores, params))

    ranks = torch.arange(0, _MOST, 1 if on.name == "cuda" else 9)  # each drawn in a row of its own
    params = torch.ones(5, len(ranks), device=on.name)
    params[2], params[3], params[4] = 0.0, (ranks + 0.5) / _MOST, _MOST
    for row in (0, 1):
        assert best_ids(scores[row].repeat(len(ranks), 1), params).tolist() == ranks.tolist()
    highest = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(3))[: _MOST + 36].sort().values
    scores = (on.randn(1, vocab_size).clamp(max=3) - 30).repeat(len(ranks), 1)
    scores[:, highest.to(on.name)] = 2.0
    assert best_ids(scores, params).tolist() == highest[ranks].tolist()


def random_params(on: Device, rows: int) -> torch.Tensor:
    """float32 [5, rows]."""
    draws = [0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1 - 2**-24]
    choices = ([0.3, 1.0, 3.0], [0.01, 0.3, 0.7, 0.99, 1.0], [0.0, 0.0, 0.2], draws, [1.0, 2.0, 5.0, 40.0, 50.0, 63.0, 64.0])
    return torch.stack([torch.tensor(these, device=on.name)[on.randint(len(these), rows)] for these in choices])


def best_ids(scores: torch.Tensor, params: torch.Tensor, masked: bool = False) -> torch.Tensor:
    """The kernels', in memory full of what is not to be read: NaN, the first section and group once more, a score above all."""

    def poisoned(tensor: torch.Tensor, *shape: Any, **options: Any) -> torch.Tensor:
        made = _new_empty(tensor, *shape, **options)
        return made.fill_(float("nan") if made.is_floating_point() else 0x7FFFFFF0 << 32)

    with mock.patch.object(torch.Tensor, "new_empty", poisoned):
        return top_k_search.best_ids_triton(scores, params, -7, masked)


def assert_drawn_from_the_best(
    name: str, scores: torch.Tensor, params: torch.Tensor, tokens: torch.Tensor, any_order: bool = False, slack: float = 1e-5
) -> None:
    """`any_order`: of equal scores any may be in; `slack`: the part of the mass by which sums in float32 may put an edge elsewhere."""
    for row, ((temperature, top_p, min_p, draw, count), token) in enumerate(zip(params.t().tolist(), tokens.tolist(), strict=True)):
        told = f"{name}, row {row}, {temperature=} {top_p=} {min_p=} {draw=} top_k={count}: token {token}"
        assert 0 <= token < scores.shape[1], told
        ordered, order = scores[row].cpu().float().sort(descending=True, stable=True)
        ordered, order = ordered[: int(count)], order[: int(count)]
        weights = ordered.div(temperature).double().softmax(dim=0)
        before, part_of_best = weights.cumsum(0) - weights, weights / weights[0]
        kept = ((before < top_p) & (part_of_best >= min_p) & (weights > 0)) | (before == 0)
        at_edge = ((before - top_p).abs() < slack) | ((part_of_best - min_p).abs() < slack * min_p)  # may be in or out
        mass = (weights * kept).cumsum(0)
        aim, unsure = draw * float(mass[-1]), 2 * slack + float(weights[at_edge].sum())
        pointed_at = (mass - weights * kept - unsure <= aim) & (aim <= mass + unsure) & (kept | at_edge)
        places = ordered == scores[row, token].float().cpu() if any_order else order == token
        assert (pointed_at & places).any(), f"{told} is at {places.nonzero()[:, 0].tolist()}, not {pointed_at.nonzero()[:, 0].tolist()}"
