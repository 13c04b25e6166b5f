"""Sampling waits for nothing: a step that did would keep the host from preparing the next one, and so the GPU from beginning it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from glmserve.runner.sampler import Sampler
from tests.runner.sampling import request_of, spec_of

VOCAB = 130_528
WAYS: dict[str, list[dict[str, Any]]] = {
    "greedy": [{"temperature": 0.0}],
    "top_p": [{"top_p": 0.7}],
    "top_k": [{"top_k": 50, "top_p": 0.7}],
    "long top_k": [{"top_k": 100}],
    "bias": [{"logit_bias": {9: 1.0, 11: -100.0}, "top_p": 0.7}],
    "min_tokens": [{"min_tokens": 8, "top_k": 50}],
    "penalties": [{"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1}],
    "logprobs": [{"logprobs": 5, "top_p": 0.7}],
    "all of them": [{"temperature": 0.0}, {"top_p": 0.7}, {"top_k": 50}, {"repetition_penalty": 1.2, "logprobs": 1}, {"min_tokens": 3}],
}


@pytest.fixture
def nobody_may_wait() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says so the first time
@pytest.mark.parametrize("way", WAYS)
def test_sampling_waits_for_nothing(way: str, nobody_may_wait: None) -> None:
    sampler = Sampler(spec_of("chatglm", VOCAB), 8, torch.device("cuda"))
    logits = torch.randn(8, VOCAB, device="cuda", dtype=torch.float16)
    for outputs in ([], [5, 7], [5, 7, 8]):
        with torch.inference_mode():
            # The first round compiles and takes memory; the second sends its own requests' prompts.
            for mode in ("default", "error"):
                requests = [request_of(row, [1, 2, 3], outputs, seed=row, **WAYS[way][row % len(WAYS[way])]) for row in range(8)]
                torch.cuda.set_sync_debug_mode(mode)
                token_ids = sampler.sample(logits.clone(), requests).token_ids
                torch.cuda.set_sync_debug_mode("default")
        assert ((token_ids >= 0) & (token_ids < VOCAB)).all()
