"""One line of JSON for each request that ended: what it was, how it ended, where its time went.

The record is filled by the text wing; `observe.metrics` reads the same record, so log and metrics cannot disagree.
Prompts and answers are never logged.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

import msgspec
import structlog

from glmserve.protocol.messages import FinishReason


class ChoiceRecord(msgspec.Struct, gc=False):
    """How one choice ended; seconds are None where the engine never said (an aborted request, a dead engine)."""

    finish_reason: FinishReason
    num_tokens: int
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    num_preemptions: int = 0


class RequestRecord(msgspec.Struct):
    """A finished request.  `status` is the HTTP status that the outcome stands for; 499 is a client that went away."""

    request_id: str
    status: int
    num_prompt_tokens: int
    num_cached_tokens: int
    e2e_seconds: float
    first_token_seconds: float | None
    choices: list[ChoiceRecord]
    error: str | None = None


def _slowest(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(max(known), 6) if known else None


class RequestLog:
    """Writes records as JSON lines to `stream` (stderr by default)."""

    def __init__(self, stream: TextIO | None = None, level: str = "info") -> None:
        self._enabled = level in ("debug", "info")
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(stream or sys.stderr),
            processors=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(serializer=lambda line, **_: msgspec.json.encode(line).decode()),
            ],
        )

    def write(self, record: RequestRecord) -> None:
        """Log one finished request."""
        if self._enabled:
            self._logger.msg(**self._fields(record))

    @staticmethod
    def _fields(record: RequestRecord) -> dict[str, Any]:
        first = record.first_token_seconds
        fields: dict[str, Any] = {
            "event": "request",
            "request_id": record.request_id,
            "status": record.status,
            "finish_reason": ",".join(dict.fromkeys(choice.finish_reason.value for choice in record.choices)),
            "prompt_tokens": record.num_prompt_tokens,
            "cached_tokens": record.num_cached_tokens,
            "completion_tokens": sum(choice.num_tokens for choice in record.choices),
            "choices": len(record.choices),
            "e2e_seconds": round(record.e2e_seconds, 6),
            "first_token_seconds": None if first is None else round(first, 6),
            "queue_seconds": _slowest([choice.queue_seconds for choice in record.choices]),
            "prefill_seconds": _slowest([choice.prefill_seconds for choice in record.choices]),
            "decode_seconds": _slowest([choice.decode_seconds for choice in record.choices]),
            "preemptions": sum(choice.num_preemptions for choice in record.choices),
        }
        if record.error is not None:
            fields["error"] = record.error
        return fields
