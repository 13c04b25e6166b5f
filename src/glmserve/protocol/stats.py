"""What the engine says of itself once a step.  A metric is one field here: the exporter iterates over them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


def _gauge(help_text: str) -> Meta:
    return Meta(description=help_text, extra={"kind": "gauge"})


def _counter(help_text: str) -> Meta:
    return Meta(description=help_text, extra={"kind": "counter"})


class EngineStats(msgspec.Struct):
    """A snapshot after one engine step; counters run from the engine's start.  Suffixes are vLLM's."""

    num_requests_running: Annotated[int, _gauge("Requests in the running batch")] = 0
    num_requests_waiting: Annotated[int, _gauge("Requests waiting in the engine's queue")] = 0
    kv_cache_usage_perc: Annotated[float, _gauge("Share of K/V blocks in use, 0 to 1")] = 0.0
    num_preemptions: Annotated[int, _counter("Requests pushed back to the queue because K/V ran out")] = 0
    prompt_tokens: Annotated[int, _counter("Prompt tokens computed")] = 0
    generation_tokens: Annotated[int, _counter("Tokens generated")] = 0
    prefix_cache_queries: Annotated[int, _counter("Prompt tokens looked up in the K/V cache")] = 0
    prefix_cache_hits: Annotated[int, _counter("Prompt tokens found in the K/V cache")] = 0
    engine_steps: Annotated[int, _counter("Engine steps: the heartbeat of a working engine")] = 0
    prefill_seconds: Annotated[float, _counter("Seconds spent in prefill steps")] = 0.0
    decode_seconds: Annotated[float, _counter("Seconds spent in decode steps")] = 0.0
    idle_seconds: Annotated[float, _counter("Seconds the engine had no work")] = 0.0
