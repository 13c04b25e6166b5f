"""One line of JSON for each request."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

from glmserve.observe.request_log import REFUSALS_A_SECOND, RequestLog
from glmserve.observe.request_record import ChoiceRecord, RequestRecord
from glmserve.protocol.messages import FinishReason, WaitCause

RECORD = RequestRecord(
    "r-1", 200, 11, 4, 3.5, 1.5,
    [
        ChoiceRecord(FinishReason.STOP, 7, 0.5, 1.0, 2.0, 1, WaitCause.NONE, 0, "", 0.25, 99, 0.125),
        ChoiceRecord(FinishReason.LENGTH, 9, 0.7, 1.0, 1.0, 0, WaitCause.KV_FULL, 14, "r-0"),
    ],
    admission_seconds=0.01, tokenize_seconds=0.02, slow_client_seconds=0.03,
)  # fmt: skip


def lines(stream: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_sizes_times_and_outcome() -> None:
    stream = StringIO()
    RequestLog(stream).write(RECORD)
    [line] = lines(stream)
    assert line["event"] == "request" and line["request_id"] == "r-1" and line["status"] == 200 and line["finish_reason"] == "stop,length"
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"], line["choices"]) == (11, 4, 16, 2)
    assert (line["queue_seconds"], line["decode_seconds"], line["preemptions"]) == (0.7, 2.0, 1)
    assert (line["wait_cause"], line["num_ahead"], line["largest_ahead"]) == ("kv_full", 14, "r-0")
    assert (line["prefill_stall_seconds"], line["prefill_stall_tokens"], line["preempted_seconds"]) == (0.25, 99, 0.125)
    assert (line["admission_seconds"], line["tokenize_seconds"], line["slow_client_seconds"]) == (0.01, 0.02, 0.03)
    assert line["timestamp"].endswith("Z") and line["error"] is None
    assert line["cause"] == "decode" and "16" not in line["why"] and "8 tokens" in line["why"]


def test_what_the_engine_never_said_is_null_and_the_error_is_told() -> None:
    stream = StringIO()
    RequestLog(stream).write(RequestRecord("r", 503, 1, 0, 0.1, None, [ChoiceRecord(FinishReason.ERROR, 0)], "the engine was lost"))
    [line] = lines(stream)
    assert line["queue_seconds"] is None and line["first_token_seconds"] is None
    assert line["error"] == line["why"] == "the engine was lost"


def test_a_higher_level_is_silent_but_remembers() -> None:
    stream = StringIO()
    log = RequestLog(stream, level="warning")
    log.write(RECORD)
    assert stream.getvalue() == ""
    assert [line.request_id for line in log.slowest(over=0, last=10)] == ["r-1"]


def test_the_slow_ones_newest_first() -> None:
    log = RequestLog(StringIO())
    for number, seconds in enumerate([3.0, 1.0, 2.0, 5.0]):
        log.write(RequestRecord(str(number), 200, 1, 0, seconds, None, []))
    assert [line.request_id for line in log.slowest(over=2.0, last=10)] == ["3", "2", "0"]
    assert [line.request_id for line in log.slowest(over=2.0, last=1)] == ["3"]


def test_a_crowd_that_is_refused_does_not_fill_the_log() -> None:
    stream, now = StringIO(), 10.0
    log = RequestLog(stream, clock=lambda: now)
    for number in range(1000):
        log.refuse(str(number), "/chat", 503, "server_is_overloaded", "full")
    log.refuse("other", "/chat", 400, None, "x" * 10_000)
    assert len(lines(stream)) == REFUSALS_A_SECOND + 1
    assert len(lines(stream)[-1]["error"]) < 1000
    now = 11.0
    log.refuse("later", "/chat", 503, "server_is_overloaded", "full")
    assert lines(stream)[-1] | {"timestamp": ""} == {
        "timestamp": "", "event": "refused", "request_id": "later", "path": "/chat", "status": 503, "code": "server_is_overloaded",
        "error": "full", "not_logged": 1000 - REFUSALS_A_SECOND,
    }  # fmt: skip
