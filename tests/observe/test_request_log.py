"""One line of JSON for each request."""

from __future__ import annotations

import json
from io import StringIO

from glmserve.observe.request_log import ChoiceRecord, RequestLog, RequestRecord
from glmserve.protocol.messages import FinishReason

RECORD = RequestRecord(
    "r-1", 200, 11, 4, 3.5, 1.5,
    [ChoiceRecord(FinishReason.STOP, 7, 0.5, 1.0, 2.0, 1), ChoiceRecord(FinishReason.LENGTH, 9, 0.7, 1.0, 1.0)],
)  # fmt: skip


def test_a_line_has_sizes_times_and_outcome() -> None:
    stream = StringIO()
    RequestLog(stream).write(RECORD)
    line = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert line["request_id"] == "r-1" and line["status"] == 200 and line["finish_reason"] == "stop,length"
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"], line["choices"]) == (11, 4, 16, 2)
    assert (line["queue_seconds"], line["decode_seconds"], line["preemptions"]) == (0.7, 2.0, 1)
    assert line["timestamp"] and "error" not in line


def test_what_the_engine_never_said_is_null_and_the_error_is_told() -> None:
    stream = StringIO()
    RequestLog(stream).write(RequestRecord("r", 503, 1, 0, 0.1, None, [ChoiceRecord(FinishReason.ERROR, 0)], "the engine was lost"))
    line = json.loads(stream.getvalue())
    assert line["queue_seconds"] is None and line["first_token_seconds"] is None
    assert line["error"] == "the engine was lost"


def test_a_higher_level_is_silent() -> None:
    stream = StringIO()
    RequestLog(stream, level="warning").write(RECORD)
    assert stream.getvalue() == ""
