"""Each way to be slow has its sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glmserve.observe.request_log import ExplainedLine
from glmserve.observe.request_record import RequestLine
from glmserve.observe.slow import reason_of

FAST = {"prompt_tokens": 20, "completion_tokens": 10, "queue_seconds": 0.0, "prefill_seconds": 0.0, "decode_seconds": 0.1}

CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"queue_seconds": 3.1, "wait_cause": "kv_full", "num_ahead": 14}, "kv_full",
     "waited 3.1 s for K/V blocks: 14 requests before it held all of them"),
    ({"queue_seconds": 3.1, "wait_cause": "kv_full", "num_ahead": 14, "largest_ahead": "chat-7"}, "kv_full",
     "waited 3.1 s for K/V blocks: 14 requests before it held all of them, chat-7 the most"),
    ({"queue_seconds": 3.1, "wait_cause": "batch_full", "num_ahead": 1}, "batch_full",
     "waited 3.1 s for a place in the batch: 1 request ran, as many as may"),
    ({"queue_seconds": 0.6, "wait_cause": "batching"}, "batching",
     "waited 600 ms because the batching mode lets nobody join running requests"),
    ({"queue_seconds": 2}, "queue", "waited 2.0 s in the queue while others were computed"),
    ({"prefill_seconds": 2.5, "prompt_tokens": 1900, "cached_tokens": 100}, "long_prompt",
     "its prompt was computed in 2.5 s: 1,800 tokens"),
    ({"decode_seconds": 41.8, "completion_tokens": 1900}, "long_answer", "long answer: 1,900 tokens at 22 ms each"),
    ({"decode_seconds": 40, "completion_tokens": 1000, "choices": 2}, "long_answer", "long answer: 500 tokens at 80 ms each"),
    ({"decode_seconds": 5, "completion_tokens": 10}, "decode", "its answer was computed in 5.0 s: 10 tokens at 500 ms each"),
    ({"decode_seconds": 5, "prefill_stall_seconds": 4, "prefill_stall_tokens": 38_000}, "prefill_of_others",
     "its answer stood still for 4.0 s while 38,000 tokens of other prompts were computed"),
    ({"decode_seconds": 5, "preempted_seconds": 3, "preemptions": 2}, "preempted",
     "pushed back 2 times for want of K/V blocks, which took 3.0 s; its answer was computed in 2.0 s: 10 tokens at 200 ms each"),
    ({"decode_seconds": 5, "completion_tokens": 50, "queue_seconds": 4, "wait_cause": "kv_full", "num_ahead": 2}, "kv_full",
     "waited 4.0 s for K/V blocks: 2 requests before it held all of them; its answer was computed in 5.0 s: 50 tokens at 100 ms each"),
    ({"decode_seconds": 5, "completion_tokens": 50, "queue_seconds": 1, "wait_cause": "kv_full", "num_ahead": 2}, "decode",
     "its answer was computed in 5.0 s: 50 tokens at 100 ms each"),
    ({"slow_client_seconds": 9.5}, "slow_client", "the client read slowly: the server waited 9.5 s for it to take what was written"),
    ({"admission_seconds": 2.0}, "admission", "for 2.0 s its body was read and checked"),
    ({"turn_seconds": 6.9}, "turn", "waited 6.9 s for its turn: this server answers one request at a time"),
    ({"tokenize_seconds": 0.4, "prompt_tokens": 1}, "tokenize", "its text was turned into 1 token in 400 ms"),
    ({"e2e_seconds": 8.1}, "server", "8.0 s passed in the server, outside the engine"),
    ({"status": 499, "e2e_seconds": 7, "first_token_seconds": 0.1, "completion_tokens": 35}, "client_gone",
     "the client went away after 7.0 s, with 35 tokens written"),
    ({"status": 499, "e2e_seconds": 7}, "client_gone", "the client went away after 7.0 s, before its first token"),
    ({"status": 504, "error": "the answer was not finished within 600 s"}, "deadline", "the answer was not finished within 600 s"),
    ({"status": 503, "error": "the engine was lost"}, "failed", "the engine was lost"),
]  # fmt: skip


@pytest.mark.parametrize("fields, cause, why", CASES, ids=[f"{cause}-{index}" for index, (_, cause, _) in enumerate(CASES)])
def test_the_reason(fields: dict[str, Any], cause: str, why: str) -> None:
    parts = (
        "queue_seconds",
        "prefill_seconds",
        "decode_seconds",
        "slow_client_seconds",
        "admission_seconds",
        "turn_seconds",
        "tokenize_seconds",
    )
    merged = {"status": 200, **FAST, **fields}
    if "e2e_seconds" not in fields:
        merged["e2e_seconds"] = sum(merged.get(part, 0.0) for part in parts)
    assert reason_of(RequestLine("2026-01-01T00:00:00Z", **merged)) == (cause, why)


def test_a_line_of_an_aborted_request_has_a_reason_too() -> None:
    assert reason_of(RequestLine("", status=200, e2e_seconds=1.0)).cause == "server"


def test_the_page_about_it_names_every_field_and_every_cause() -> None:
    page = (Path(__file__).parents[2] / "docs" / "slow.md").read_text(encoding="utf-8")
    for name in (*ExplainedLine.__struct_fields__, "code", "not_logged", *(cause for _, cause, _ in CASES)):
        assert f"`{name}`" in page, name
