"""Requests and logits for a sampler without an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from glmserve.models.spec import ModelSpec
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.runner import sampler as sampler_module
from glmserve.runner.sampler import Sampler
from glmserve.scheduler.request import Request

VOCAB, EOS = 120, 99


def spec_of(family: str = "llama", vocab_size: int = VOCAB) -> ModelSpec:
    """A causal model of any vocabulary; `chatglm` takes token 5 where scores are not numbers."""
    return ModelSpec(
        family=family,
        attention="causal",
        rotary="1d",
        num_layers=1,
        hidden_size=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=8,
        vocab_size=vocab_size,
        max_model_len=4096,
        norm_epsilon=1e-5,
        eos_token_ids=(EOS,),
        extra={"invalid_score_token_id": 5} if family == "chatglm" else {},
    )


def request_of(row: int, prompt: list[int] | None = None, outputs: list[int] | None = None, seed: int = 0, **params: Any) -> Request:
    """A running request about to sample its next token, after `outputs`."""
    message = EngineRequest(f"request-{row}", prompt or [1], SamplingParams(max_tokens=1000, **params), 0.0)
    request = Request(message, spec_of(), 4096, seed)
    request.token_ids += outputs or []
    request.row = row
    request.num_in_flight = 1  # the token being sampled is counted already
    return request


def sampled_shares(
    monkeypatch: pytest.MonkeyPatch, logits: list[float], prompt: list[int], num_draws: int = 4096, **params: Any
) -> np.ndarray:
    """How often each token is drawn when the draws are evenly spread over [0, 1): the distribution itself, but for 1 / num_draws."""
    draws = iter((i + 0.5) / num_draws for i in range(num_draws))
    monkeypatch.setattr(sampler_module, "uniform", lambda seed, step: next(draws))
    requests = [request_of(row, prompt, **params) for row in range(num_draws)]
    sampler = Sampler(spec_of("chatglm", len(logits)), num_draws, torch.device("cpu"))
    token_ids = sampler.sample(torch.tensor([logits]).repeat(num_draws, 1), requests).token_ids
    return np.bincount(token_ids.numpy(), minlength=len(logits)) / num_draws
