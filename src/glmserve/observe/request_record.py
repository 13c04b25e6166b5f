"""What is kept of a request that ended: how large it was, how it ended, where its time went.  Never its text.

The text wing fills a `RequestRecord`; the histograms of /metrics and the `RequestLine` of the log are both made from it, so that they
cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

import msgspec

from glmserve.protocol.messages import FinishReason, WaitCause

# The header of the request that is being handled; set by the server where traces are wanted.
TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)
CLIENT_GONE_STATUS = 499  # nginx's number for a client that closed the connection; it is logged, never sent


class ChoiceRecord(msgspec.Struct, gc=False):
    """How one choice ended; seconds are None where the engine never said (an aborted request, a dead engine)."""

    finish_reason: FinishReason
    num_tokens: int
    queue_seconds: float | None = None  # sent to the engine, to first scheduled
    prefill_seconds: float | None = None  # to its first token
    decode_seconds: float | None = None  # to its last token
    num_preemptions: int = 0
    wait_cause: WaitCause = WaitCause.NONE  # of the queue's seconds
    num_ahead: int = 0  # requests that ran while it waited for that
    largest_ahead: str = ""  # id of the one that held most
    prefill_stall_seconds: float | None = None  # of the decode seconds: the device computed prompts
    prefill_stall_tokens: int = 0  # tokens of those prompts
    preempted_seconds: float | None = None  # of prefill and decode seconds: pushed back to the queue


class RequestRecord(msgspec.Struct):
    """A finished request.  `status` is the HTTP status that the outcome stands for; 499 is a client that went away."""

    request_id: str
    status: int
    num_prompt_tokens: int
    num_cached_tokens: int
    e2e_seconds: float  # accepted, to the end
    first_token_seconds: float | None
    choices: list[ChoiceRecord]
    error: str | None = None
    admission_seconds: float = 0.0  # reading and checking the body
    turn_seconds: float = 0.0  # waiting for its turn, where requests are served one at a time
    tokenize_seconds: float = 0.0
    slow_client_seconds: float = 0.0  # the client did not take what was written
    operation: str = "text_completion"  # or "chat", as OpenTelemetry's GenAI conventions have it
    traceparent: str | None = None  # W3C Trace Context of the request that the client traces


class RequestLine(msgspec.Struct):
    """A record as one line of the log: flat, a request of several choices by the slowest of them.  Seconds are rounded to microseconds."""

    timestamp: str  # ISO 8601, UTC, when it ended
    event: str = ""  # "request"
    request_id: str = ""
    status: int = 0
    finish_reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    choices: int = 1
    e2e_seconds: float = 0.0
    first_token_seconds: float | None = None
    admission_seconds: float = 0.0
    turn_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    prefill_stall_seconds: float | None = None
    prefill_stall_tokens: int = 0
    preempted_seconds: float | None = None
    slow_client_seconds: float = 0.0
    preemptions: int = 0
    wait_cause: WaitCause = WaitCause.NONE
    num_ahead: int = 0
    largest_ahead: str = ""
    error: str | None = None


def line_of(record: RequestRecord, timestamp: str) -> RequestLine:
    """The line of a record."""
    choices = record.choices
    waited_longest = max(choices, key=lambda choice: choice.queue_seconds or 0.0, default=None)
    return RequestLine(
        timestamp=timestamp,
        event="request",
        request_id=record.request_id,
        status=record.status,
        finish_reason=",".join(dict.fromkeys(choice.finish_reason.value for choice in choices)),
        prompt_tokens=record.num_prompt_tokens,
        cached_tokens=record.num_cached_tokens,
        completion_tokens=sum(choice.num_tokens for choice in choices),
        choices=len(choices),
        e2e_seconds=round(record.e2e_seconds, 6),
        first_token_seconds=_most([record.first_token_seconds]),
        admission_seconds=round(record.admission_seconds, 6),
        turn_seconds=round(record.turn_seconds, 6),
        tokenize_seconds=round(record.tokenize_seconds, 6),
        queue_seconds=_most(choice.queue_seconds for choice in choices),
        prefill_seconds=_most(choice.prefill_seconds for choice in choices),
        decode_seconds=_most(choice.decode_seconds for choice in choices),
        prefill_stall_seconds=_most(choice.prefill_stall_seconds for choice in choices),
        prefill_stall_tokens=max((choice.prefill_stall_tokens for choice in choices), default=0),
        preempted_seconds=_most(choice.preempted_seconds for choice in choices),
        slow_client_seconds=round(record.slow_client_seconds, 6),
        preemptions=sum(choice.num_preemptions for choice in choices),
        wait_cause=waited_longest.wait_cause if waited_longest else WaitCause.NONE,
        num_ahead=waited_longest.num_ahead if waited_longest else 0,
        largest_ahead=waited_longest.largest_ahead if waited_longest else "",
        error=record.error,
    )


def _most(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(max(known), 6) if known else None
