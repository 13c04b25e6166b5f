"""The search for the set of top_p and the draw from it, held to a sort in float64; the same for the kernels and for their twin."""

from __future__ import annotations

import torch

from glmserve.kernels import nucleus, nucleus_search
from tests.kernels.cases import Device


def check_nucleus(on: Device, vocab_size: int, spread: float) -> None:
    """Rows of every mixture of parameters: the token lies in the set and where the draw points, both counted in float64."""
    rows = 48 if vocab_size < 20_000 else 16
    draws = [0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1 - 2**-24]
    choices = ([0.3, 1.0, 3.0], [0.01, 0.3, 0.7, 0.99, 1.0], [0.0, 0.0, 0.2], draws)
    params = torch.stack([torch.tensor(these, device=on.name)[on.randint(len(these), rows)] for these in choices])
    scores = on.randn(rows, vocab_size) * spread
    scores[::2] -= 3 * spread  # the edge below 0, too
    scores[::3] = scores[::3].round(decimals=0)  # many equal scores, also at the edge
    scores[::5, 1:-1:2] = -float("inf")
    tokens = nucleus_search.nucleus_ids_triton(scores, params, -7, masked=True)
    for name, ids in (("kernel", tokens), ("twin", nucleus.nucleus_ids_torch(scores, params, -7, masked=True))):
        assert_drawn_from_the_nucleus(name, scores, params, ids)
    few = params[:, 2:5]
    assert nucleus_search.nucleus_ids_triton(scores[2:5], few.contiguous(), -7).tolist() == tokens[2:5].tolist()
    for column, bad in ((0, float("nan")), (-1, float("inf")), (1, -float("inf"))):
        scores[2, column] = bad
        assert nucleus_search.nucleus_ids_triton(scores[2:4], few[:, :2].contiguous(), -7).tolist() == [-7, int(tokens[3])]
        assert nucleus.nucleus_ids_torch(scores[2:4], few[:, :2], -7)[0] == -7
        assert bad < 0 or nucleus_search.nucleus_ids_triton(scores[2:4], few[:, :2].contiguous(), -7, masked=True)[0] == -7
        scores[2, column] = 0.0


def check_nucleus_of_ties(on: Device, vocab_size: int) -> None:
    """Four levels of scores, each in every piece of a row: the edge cuts through equal scores, and min_p through the edge."""
    rows = 16
    scores = (on.randint(4, rows, vocab_size) - on.randint(6, rows, 1)).to(on.dtype)
    choices = ([1.0, 3.0], [0.3, 0.55, 0.8, 0.93, 0.99], [0.0, 0.1, 0.4], [0.05, 0.5, 0.97, 1 - 2**-24])
    params = torch.stack([torch.tensor(these, device=on.name)[on.randint(len(these), rows)] for these in choices])
    tokens = nucleus_search.nucleus_ids_triton(scores, params, -7)
    assert_drawn_from_the_nucleus("kernel", scores, params, tokens)
    assert_drawn_from_the_nucleus("twin", scores, params, nucleus.nucleus_ids_torch(scores, params, -7))


def assert_drawn_from_the_nucleus(name: str, scores: torch.Tensor, params: torch.Tensor, tokens: torch.Tensor, slack: float = 1e-5) -> None:
    """`slack`: the part of the mass by which sums in float32 may put an edge elsewhere."""
    for row, ((temperature, top_p, min_p, draw), token) in enumerate(zip(params.t().tolist(), tokens.tolist(), strict=True)):
        weights = (scores[row].cpu().float().div(temperature)).double().softmax(dim=0)
        ordered, order = weights.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        kept = torch.zeros_like(weights).scatter_(0, order, ((before < top_p) | (before == 0)).double())
        at_edge = ((before - top_p).abs() < slack)[order.argsort()]  # may be in or out
        told = f"{name}, row {row}, {temperature=} {top_p=} {min_p=} {draw=}: token {token}"
        assert 0 <= token < len(weights) and (kept[token] or at_edge[token]), f"{told} is not in the set"
        assert weights[token] >= min_p * weights.max() * (1 - slack)
        mass = (weights * kept * (weights >= min_p * weights.max())).cumsum(0)
        below, unsure = float(mass[token - 1]) if token else 0.0, 2 * slack + float(weights[at_edge].sum())
        aim = draw * float(mass[-1])
        assert below - unsure <= aim <= mass[token] + unsure, f"{told} is at {below} to {mass[token]}, the draw at {aim}, give {unsure}"
