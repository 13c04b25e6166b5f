"""What is read from an answer, with the moments given by the test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glmserve.tools.bench.answers import AnswerReader, Outcome


def text_event(text: str, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text}], **more}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}\n\n'
DONE = b"data: [DONE]\n\n"


def read(*pieces: tuple[float, bytes], code: int = 200, streaming: bool = True) -> Outcome:
    """A request sent at 100.0 in a run that began at 90.0."""
    reader = AnswerReader(100.0, input_tokens=7, streaming=streaming)
    reader.status(code)
    for moment, data in pieces:
        reader.body(data, moment)
    return reader.finish(run_started=90.0)


def test_times_of_a_stream() -> None:
    outcome = read((100.5, text_event("a")), (101.0, text_event("b")), (103.5, text_event("cde") + USAGE + DONE))
    assert outcome == Outcome(sent=10.0, latency=3.5, ttft=0.5, itls=[0.5, 2.5], input_tokens=9, output_tokens=5)


def test_tpot_leaves_the_first_token_out_and_counts_the_servers_tokens_not_events() -> None:
    assert read((100.5, text_event("a")), (103.5, text_event("bcde") + USAGE + DONE)).tpot == pytest.approx((3.5 - 0.5) / (5 - 1))


def test_an_answer_of_one_token_has_no_tpot() -> None:
    one = USAGE.replace(b"5", b"1")
    assert read((100.5, text_event("a") + one + DONE)).tpot is None


def test_events_without_tokens_are_not_the_first_token() -> None:
    role = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    word = b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n'
    last = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
    outcome = read((100.1, b": ping\n\n" + role), (100.4, word), (100.9, last + DONE))
    assert (outcome.ttft, outcome.latency, outcome.itls) == (pytest.approx(0.4), pytest.approx(0.4), [])


def test_token_ids_without_text_are_tokens() -> None:
    event = b'data: {"choices": [{"text": "", "token_ids": [5]}]}\n\n'
    assert read((100.25, event + DONE)).ttft == 0.25


def test_events_may_be_torn_anywhere() -> None:
    stream = text_event("你好") + USAGE + DONE
    torn = read(*((100.0 + place, stream[place : place + 1]) for place in range(len(stream))))
    assert not torn.error
    assert torn.output_tokens == 5
    assert torn.ttft == stream.index(b"\n")


def test_crlf_between_events() -> None:
    assert read((101.0, (text_event("a") + DONE).replace(b"\n", b"\r\n"))).error == ""


def test_without_usage_the_number_of_tokens_is_unknown() -> None:
    assert read((101.0, text_event("a") + DONE)).output_tokens is None


@pytest.mark.parametrize(
    ("data", "code", "error"),
    [
        (b'{"error": {"message": "too many"}}', 503, "HTTP 503"),
        (text_event("a"), 200, "stream cut off"),
        (DONE, 200, "empty answer"),
        (text_event("a") + b'data: {"error": {"message": "engine died"}}\n\n' + DONE, 200, "error in the stream"),
        (b"data: hello\n\n" + DONE, 200, "not an OpenAI stream"),
        (b"<html>", 200, "stream cut off"),
    ],
)
def test_failures_by_kind(data: bytes, code: int, error: str) -> None:
    assert read((101.0, data), code=code).error == error


def test_what_the_server_said_is_kept() -> None:
    assert "too many" in read((101.0, b'{"error": "too many"}'), code=429).detail


def test_a_chatglm_answer_has_its_whole_time_alone() -> None:
    outcome = read((100.5, b'{"response": "hi", '), (102.0, b'"status": 200}'), streaming=False)
    assert outcome == Outcome(sent=10.0, latency=2.0, ttft=None, itls=[], input_tokens=7, output_tokens=None)
    assert read((100.5, b'{"detail": "hi"}'), streaming=False).error == "not a ChatGLM answer"
