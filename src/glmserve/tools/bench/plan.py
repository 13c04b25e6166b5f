"""What is to be sent and when, drawn from a seed before anything runs, and split over the client processes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from glmserve.tools.bench.settings import DEFAULT_IDS, ServeBenchConfig

PATHS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions", "chatglm": "/"}
VOCABULARY = (
    "the a one and or time water house road light city river paper green small large open early never under after stone music "
    "garden window morning winter summer letter number answer question people mountain bridge history machine"
)
WORDS = VOCABULARY.split()


class PlannedRequest(msgspec.Struct):
    """One request: its number, seconds after the start at which it may go out, tokens in and out."""

    index: int
    send_at: float
    input_len: int
    output_len: int


class ServerFacts(msgspec.Struct):
    """What the server was asked beforehand."""

    model: str
    prefix_ids: list[int] = []
    suffix_ids: list[int] = []
    word_ids: list[int] = []  # ids that stand for ordinary text in this model
    tokens_per_word: float = 1.0


class Plan(msgspec.Struct):
    """The share of one client process."""

    base_url: str
    path: str
    backend: str
    headers: dict[str, str]
    facts: ServerFacts
    token_ids: tuple[int, int] | None
    seed: int
    temperature: float
    ignore_eos: bool
    timeout: float
    max_concurrency: int | None
    requests: list[PlannedRequest]
    num_warmups: int = 0
    duration: float | None = None

    @property
    def streaming(self) -> bool:
        """Whether the answer comes in pieces."""
        return self.backend != "chatglm"

    def body(self, request: PlannedRequest) -> bytes:
        """The JSON to send."""
        rng = random.Random(f"{self.seed} {request.index}")
        if self.backend == "chatglm":
            return msgspec.json.encode(
                {"prompt": self._text(rng, request.input_len), "history": [], "max_length": request.input_len + request.output_len}
            )
        body: dict[str, Any] = {
            "model": self.facts.model,
            "max_tokens": request.output_len,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.backend == "openai":
            body["prompt"] = self._ids(rng, request.input_len)
        else:
            body["messages"] = [{"role": "user", "content": self._text(rng, request.input_len)}]
        return msgspec.json.encode(body)

    def _ids(self, rng: random.Random, length: int) -> list[int]:
        facts = self.facts
        room = max(0, length - len(facts.prefix_ids) - len(facts.suffix_ids))
        return [*facts.prefix_ids, *rng.choices(self._id_pool(), k=room), *facts.suffix_ids]

    def _id_pool(self) -> Sequence[int]:
        if self.token_ids is None and self.facts.word_ids:
            return self.facts.word_ids
        low, high = self.token_ids or map(int, DEFAULT_IDS.split(":"))
        return range(low, high)

    def _text(self, rng: random.Random, length: int) -> str:
        return " ".join(rng.choices(WORDS, k=max(1, round(length / self.facts.tokens_per_word))))


def make_plans(config: ServeBenchConfig, facts: ServerFacts) -> list[Plan]:
    """One plan a client process.  A request belongs to one of `max_concurrency` slots, and each process has its share of the slots."""
    requests = draw_requests(config)
    num_slots = min(config.max_concurrency or len(requests), len(requests))
    num_workers = min(config.num_workers, num_slots)
    ids = config.token_id_range
    plans = []
    for worker in range(num_workers):
        share = [request for request in requests if request.index % num_slots % num_workers == worker]
        plans.append(
            Plan(
                base_url=config.base_url,
                path=config.endpoint or PATHS[config.backend],
                backend=config.backend,
                headers={"Authorization": f"Bearer {config.api_key}"} if config.api_key else {},
                facts=facts,
                token_ids=(ids.start, ids.stop) if ids else None,
                seed=config.seed,
                temperature=config.temperature,
                ignore_eos=config.ignore_eos,
                timeout=config.request_timeout,
                max_concurrency=None if config.max_concurrency is None else len(range(worker, num_slots, num_workers)),
                requests=share,
                num_warmups=config.num_warmups if worker == 0 else 0,
                duration=config.duration,
            )
        )
    return plans


def draw_requests(config: ServeBenchConfig) -> list[PlannedRequest]:
    """All requests in the order of sending; the same for the same seed."""
    rng = random.Random(config.seed)
    requests, send_at = [], 0.0
    for index in range(config.num_prompts):
        lengths = (_draw_length(rng, length, config.random_range_ratio) for length in (config.random_input_len, config.random_output_len))
        requests.append(PlannedRequest(index, send_at, *lengths))
        send_at += _draw_pause(rng, config.request_rate, config.burstiness)
    return requests


def _draw_length(rng: random.Random, length: int, ratio: float) -> int:
    return rng.randint(max(1, math.floor(length * (1 - ratio))), math.ceil(length * (1 + ratio))) if ratio else length


def _draw_pause(rng: random.Random, rate: float, burstiness: float) -> float:
    """Seconds to the next request: gamma distributed around 1 / rate, which is Poisson's exponential at burstiness 1."""
    return 0.0 if math.isinf(rate) else rng.gammavariate(burstiness, 1 / (rate * burstiness))
