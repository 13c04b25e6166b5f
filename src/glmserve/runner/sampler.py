"""From logits to token ids, on the device, without waiting for it.

Order, as the released ChatGLM-6B applies it: penalties, bias and minimum length; invalid scores; temperature; top-k; top-p; min-p; draw.
The draw is the inverse of the cumulative distribution at one number per (seed, step), so a request's text depends on its seed alone and
not on who shares its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from glmserve.kernels.greedy import greedy_ids
from glmserve.kernels.nucleus import nucleus_ids
from glmserve.kernels.top_k import best_ids
from glmserve.kernels.top_k_search import MAX_TOP_K
from glmserve.models.spec import ModelSpec
from glmserve.runner.penalties import PenaltyState
from glmserve.runner.sending import sent
from glmserve.scheduler.request import Request

_MANY_ROWS = 65  # for which kernels do not start early


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one step sampled, on the device.

    token_ids: int64 [num_rows], -1 where the scores were not numbers.  With log probabilities: `top_ids`, `top_logprobs`
    [num_rows, k + 1] with the sampled token first, and `ranks` int64 [num_rows] of the sampled one.
    """

    token_ids: torch.Tensor
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None
    ranks: torch.Tensor | None = None


class Sampler:
    """Samples one token for each row of logits.  Keeps what penalties need, by the requests' rows."""

    def __init__(self, spec: ModelSpec, max_num_seqs: int, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.penalties = PenaltyState(max_num_seqs, spec.vocab_size, device)
        # InvalidScoreLogitsProcessor: any NaN or infinite score, and token 5 is taken instead
        self._invalid_id: int = spec.extra.get("invalid_score_token_id", -1)

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, requests: list[Request]) -> Sampled:
        """logits: [len(requests), vocab_size], any float dtype; may be overwritten."""
        num_logprobs = max((r.params.logprobs for r in requests if r.params.logprobs is not None), default=None)
        changed, methods = any(map(_changes_scores, requests)), {_method(request) for request in requests}
        if num_logprobs is None and not changed and len(methods) == 1:
            return Sampled(self._draw_by(methods.pop(), logits, requests, self._invalid_id, masked=False))
        scores = logits
        if changed:
            self._adjust(scores := logits.to(torch.float32, copy=True), requests)
        valid = torch.isfinite(logits.sum(dim=-1, dtype=torch.float32))  # of the model's own scores: masks and bias may be infinite
        token_ids = torch.where(valid, self._draw(scores, requests), self._invalid_id)
        self.penalties.count(requests, token_ids)
        if num_logprobs is None:
            return Sampled(token_ids)
        # Where scores are not numbers there is no distribution to tell of; JSON, which this ends in, has no NaN.
        return self._with_logprobs(logits.float().masked_fill(~valid[:, None], 0.0), token_ids, num_logprobs)

    def warm_up(self, max_num_seqs: int, dtype: torch.dtype) -> None:
        """Compile or load what samples from logits in `dtype`, ahead of the first request.  On a GPU."""
        for rows in {1, min(max_num_seqs, _MANY_ROWS)}:
            logits = torch.zeros((rows, self.spec.vocab_size), dtype=dtype, device=self.device)
            params = torch.full((5, rows), 0.5, device=self.device)
            greedy_ids(logits, self._invalid_id)
            for scores in (logits, logits.float()):
                nucleus_ids(scores, params[:4], self._invalid_id)
                best_ids(scores, params, MAX_TOP_K, self._invalid_id)
            best_ids(logits, params, MAX_TOP_K + 1, self._invalid_id)

    def _adjust(self, scores: torch.Tensor, requests: list[Request]) -> None:
        self.penalties.apply(scores, requests)
        changes: list[tuple[int, int, float]] = []  # row, token id, what to add
        for row, request in enumerate(requests):
            changes += [(row, token_id, bias) for token_id, bias in request.params.logit_bias.items()]
            if request.num_output_tokens <= request.params.min_tokens:  # the token being sampled is counted already
                changes += [(row, token_id, float("-inf")) for token_id in {*self.spec.eos_token_ids, *request.stop_token_ids}]
        changes = [change for change in changes if 0 <= change[1] < self.spec.vocab_size]  # an index beyond would end the engine
        if changes:
            places = [row * scores.shape[1] + token_id for row, token_id, _ in changes]
            scores.view(-1).index_add_(0, sent(places, self.device), sent([bias for *_, bias in changes], self.device, torch.float32))

    def _draw(self, scores: torch.Tensor, requests: list[Request]) -> torch.Tensor:
        groups: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(_method(request), []).append(row)
        if len(groups) == 1:
            return self._draw_by(next(iter(groups)), scores, requests, -1, masked=True)
        token_ids = torch.empty(len(requests), dtype=torch.int64, device=self.device)
        for method, rows in groups.items():
            index = sent(rows, self.device)
            token_ids[index] = self._draw_by(method, scores[index], [requests[row] for row in rows], -1, masked=True)
        return token_ids

    def _draw_by(self, method: str, scores: torch.Tensor, requests: list[Request], invalid_id: int, masked: bool) -> torch.Tensor:
        """int64 [len(requests)].  `masked`: -infinity is a legal score, and whether a row is valid has been judged before."""
        if method == "greedy":
            return scores.argmax(dim=-1) if masked else greedy_ids(scores, invalid_id)
        numbers = self._numbers(requests)
        if method == "nucleus":
            return nucleus_ids(scores, numbers[:4], invalid_id, masked)
        return best_ids(scores, numbers, max(r.params.top_k for r in requests), invalid_id, masked)

    def _numbers(self, requests: list[Request]) -> torch.Tensor:
        """float32 [5, len(requests)]: temperature, top_p, min_p, the draw from [0, 1), top_k."""
        numbers = [[(p := r.params).temperature, p.top_p, p.min_p, uniform(r.seed, r.num_output_tokens), p.top_k] for r in requests]
        return torch.from_numpy(np.array(numbers, dtype=np.float32).T.copy()).to(self.device, non_blocking=True)

    def _with_logprobs(self, logits: torch.Tensor, token_ids: torch.Tensor, count: int) -> Sampled:
        logprobs = torch.log_softmax(logits, dim=-1)
        chosen = logprobs.gather(1, token_ids.clamp(min=0)[:, None])
        ranks = (logprobs > chosen).sum(dim=-1) + 1
        top_logprobs, top_ids = logprobs.topk(min(count, logits.shape[-1]), dim=-1)
        return Sampled(token_ids, torch.cat((token_ids[:, None], top_ids), dim=1), torch.cat((chosen, top_logprobs), dim=1), ranks)


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that depends on seed and step alone (SplitMix64: Steele, Lea, Flood 2014)."""
    mask = 2**64 - 1
    state = (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1B54A32D192ED03) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & mask
    return ((state ^ (state >> 31)) >> 40) / 2**24


def _method(request: Request) -> str:
    params = request.params
    if params.greedy or params.top_k == 1:
        return "greedy"
    if params.top_k <= 0:
        return "nucleus"
    return "few best" if params.top_k <= MAX_TOP_K else "many best"  # apart, so that a request has one way in any company


def _changes_scores(request: Request) -> bool:
    params = request.params
    return bool(params.logit_bias) or request.num_output_tokens <= params.min_tokens or PenaltyState.wanted_by(request)
