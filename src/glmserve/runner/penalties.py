"""Repetition, presence and frequency penalties over tokens that may still be on their way to the host."""

from __future__ import annotations

import torch

from glmserve.runner.sending import sent
from glmserve.scheduler.request import Request


class PenaltyState:
    """Which tokens each running request has seen, kept on the device; memory is taken when the first request wants a penalty.

    counts: int16 [max_num_seqs, vocab_size] of generated tokens; in_prompt: bool, same shape.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self.shape = (max_num_seqs, vocab_size)
        self.device = device
        self.counts: torch.Tensor | None = None
        self.in_prompt: torch.Tensor | None = None
        self._owner: dict[int, tuple[Request, int]] = {}  # row -> the request, and which of its lives, that filled it

    @staticmethod
    def wanted_by(request: Request) -> bool:
        """True where the request has any penalty."""
        params = request.params
        return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0

    def apply(self, scores: torch.Tensor, requests: list[Request]) -> None:
        """Lower (or raise) the scores of seen tokens in place.  scores: float32 [len(requests), vocab_size]."""
        wanting = [(row, request) for row, request in enumerate(requests) if self.wanted_by(request)]
        if not wanting:
            return
        counts, in_prompt = self._tables()
        for _, request in wanting:
            self._claim_row(request, counts, in_prompt)
        rows = sent([row for row, _ in wanting], self.device)
        kept = sent([request.row for _, request in wanting], self.device)
        params = sent(
            [(r.params.repetition_penalty, r.params.presence_penalty, r.params.frequency_penalty) for _, r in wanting], self.device
        )
        repetition, presence, frequency = params.t()[:, :, None]
        part, times = scores[rows], counts[kept]
        seen = (times > 0) | in_prompt[kept]
        penalised = torch.where(part < 0, part * repetition, part / repetition)
        scores[rows] = torch.where(seen, penalised, part) - presence * (times > 0) - frequency * times

    def count(self, requests: list[Request], token_ids: torch.Tensor) -> None:
        """Count what was just sampled.  token_ids: int64 [len(requests)]."""
        wanting = [(row, request.row) for row, request in enumerate(requests) if self.wanted_by(request)]
        if wanting:
            rows, kept = sent(wanting, self.device).unbind(dim=1)
            counts, _ = self._tables()
            counts[kept, token_ids[rows].clamp(min=0)] += 1

    def _tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.counts is None or self.in_prompt is None:
            self.counts = torch.zeros(self.shape, dtype=torch.int16, device=self.device)
            self.in_prompt = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        return self.counts, self.in_prompt

    def _claim_row(self, request: Request, counts: torch.Tensor, in_prompt: torch.Tensor) -> None:
        life = (request, request.num_preemptions)  # not its id, which a later request may bear again
        if self._owner.get(request.row) == life:
            return
        # A row is claimed at a request's first step, when the host knows all of its tokens.
        self._owner[request.row] = life
        counts[request.row] = 0
        in_prompt[request.row] = False
        # not by indexing, for which torch sends the True itself, and waits
        in_prompt[request.row].index_fill_(0, sent(request.prompt_token_ids, self.device, torch.int32).long(), True)
        if request.output_token_ids:
            seen, times = torch.tensor(request.output_token_ids).unique(return_counts=True)
            counts[request.row, seen.to(self.device, non_blocking=True)] = times.short().to(self.device, non_blocking=True)
