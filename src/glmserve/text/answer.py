"""A running answer: engine tokens become deltas of text, until it has ended exactly once.

Entered as a context manager `TextAnswer` holds the request's deadlines, iterated it yields what is new, and left it has ended
whatever happened: the engine told to stop what still ran, the place given back, the metrics and the log line written.
It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from glmserve.client.engine_client import EngineClient
from glmserve.client.output_stream import OutputStream
from glmserve.client.supervisor import EngineState
from glmserve.observe.metrics import Metrics
from glmserve.observe.request_record import CLIENT_GONE_STATUS, ChoiceRecord, RequestRecord
from glmserve.protocol.errors import DeadlineExceededError, EngineUnavailableError, GlmserveError, InvalidRequestError
from glmserve.protocol.messages import FinishReason, Refusal, RequestOutput, RequestTimes, TokenLogprobs
from glmserve.text.output_text import OutputText


class ChoiceDelta(msgspec.Struct, gc=False):
    """What is new of one choice.  The last one has a `finish_reason`; `stop_reason` is the stop string or token id that ended it."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of an answer, over all its choices; a prompt counts once however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Beginning:
    """What a request had behind it when its answer began, seconds of CLOCK_MONOTONIC.  The client counts from `accepted`."""

    accepted: float
    tokenizing: float
    submitted: float
    operation: str = "text_completion"
    traceparent: str | None = None
    turn_seconds: float = 0.0  # between `accepted` and `tokenizing`, where requests are served one at a time


class RunningChoice:
    """One sequence being generated."""

    def __init__(self, index: int, stream: OutputStream, text: OutputText | None) -> None:
        self.index = index
        self.stream = stream
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.times: RequestTimes | None = None
        self._text = text

    def advance(self, outputs: list[RequestOutput]) -> ChoiceDelta:
        """The delta of all outputs that were ready together.  Raises EngineGaveUp where the engine did not finish it."""
        if not outputs:
            raise EngineGaveUp(RequestOutput(self.stream.request_id, [], FinishReason.ABORT))
        last = outputs[-1]
        self.num_cached_tokens = max(self.num_cached_tokens, last.num_cached_tokens, outputs[0].num_cached_tokens)
        self.times = last.times or self.times
        if last.finish_reason not in (None, FinishReason.STOP, FinishReason.LENGTH):
            self.finish_reason = last.finish_reason
            raise EngineGaveUp(last)
        if len(outputs) == 1:
            token_ids, logprobs = last.new_token_ids, last.logprobs
        else:
            token_ids = [token_id for output in outputs for token_id in output.new_token_ids]
            logprobs = [entry for output in outputs for entry in output.logprobs or ()] or None
        delta = ChoiceDelta(self.index, "", token_ids, logprobs, last.finish_reason, last.stop_token_id)
        if self._text is not None:
            self._add_text(delta, self._text)
        self.num_tokens += len(delta.token_ids)
        self.finish_reason = delta.finish_reason
        return delta

    def _add_text(self, delta: ChoiceDelta, output_text: OutputText) -> None:
        new = output_text.push(delta.token_ids, delta.finish_reason is not None)
        delta.text = new.text
        if new.stopped_by is None:
            return
        if delta.finish_reason is None:
            self.stream.close()
        delta.token_ids = delta.token_ids[: new.num_tokens]  # what the engine made after the stop string does not count
        delta.logprobs = delta.logprobs[: new.num_tokens] if delta.logprobs else None
        delta.finish_reason, delta.stop_reason = FinishReason.STOP, new.stopped_by

    def record(self, reason_if_open: FinishReason, submitted: float) -> ChoiceRecord:
        """How it ended, for log and metrics."""
        record = ChoiceRecord(self.finish_reason or reason_if_open, self.num_tokens)
        if (times := self.times) is not None:
            record.num_preemptions = times.num_preemptions
            record.queue_seconds = max(0.0, times.first_scheduled - submitted)
            record.prefill_seconds = max(0.0, times.first_token - times.first_scheduled)
            record.decode_seconds = max(0.0, times.finished - times.first_token)
            record.wait_cause, record.num_ahead = times.wait_cause, times.num_ahead
            record.largest_ahead = times.largest_ahead.rpartition(".")[0]  # the client's id; the engine's has a number behind it
            record.prefill_stall_seconds, record.prefill_stall_tokens = times.prefill_stall, times.prefill_stall_tokens
            record.preempted_seconds = times.preempted
        return record


class EngineGaveUp(Exception):
    """The engine ended a request that was not done."""

    def __init__(self, output: RequestOutput) -> None:
        super().__init__(output.error)
        self.output = output


def _engine_error(output: RequestOutput, client: EngineClient) -> GlmserveError:
    """What to tell the user.  An engine that still runs failed at this request alone, which sending it again may not mend."""
    if output.finish_reason is FinishReason.TIMEOUT:
        return DeadlineExceededError(output.error or "the request's time limit passed in the engine")
    if output.refusal is Refusal.INVALID:
        return InvalidRequestError(output.error or "the engine cannot serve this request")
    if output.refusal is Refusal.DRAINING:
        return EngineUnavailableError(f"{output.error}: send the request again")
    if client.state in (EngineState.DRAINING, EngineState.STOPPED):
        return EngineUnavailableError("the answer was cut off because the server is shutting down: send the request again")
    if client.state is EngineState.READY:
        return EngineRequestError(output.error or "the engine could not go on with this request")
    reason = output.error or "no reason given"
    return EngineUnavailableError(f"the engine was lost while it wrote the answer ({reason}): send the request again")


class EngineRequestError(GlmserveError):
    """The engine runs, but could not go on with this one request."""

    code = "engine_error"


class TextAnswer:
    """A running answer: `async with answer: async for deltas in answer: ...`.

    Each step of the iteration gives every delta that is ready, so tokens that arrive together travel together.
    Raises DeadlineExceededError when a time limit passes and EngineUnavailableError when the engine fails.
    """

    def __init__(
        self,
        request_id: str,
        arrival_time: float,
        beginning: Beginning,
        prompt_token_ids: list[list[int]],
        choices: list[RunningChoice],
        limits: tuple[float, float],
        on_end: Callable[[RequestRecord], None],
        metrics: Metrics,
        client: EngineClient,
    ) -> None:
        self._client = client
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self._arrival = arrival_time
        self._beginning = beginning
        self.slow_client_seconds = 0.0  # for whoever sends it to add up
        self._choices = choices
        self._limits = limits  # seconds from `arrival_time` to the first token, and to the end
        self._on_end = on_end
        self._metrics = metrics
        self._timeout: asyncio.Timeout | None = None
        self._num_open = len(choices)
        self._last_output: float | None = None
        self._first_output: float | None = None
        self._closed = False
        self._ready: asyncio.Queue[tuple[RunningChoice, list[RequestOutput]]] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def num_choices(self) -> int:
        """How many choices there are: prompts times n."""
        return len(self._choices)

    @property
    def finished(self) -> bool:
        """True once every choice has ended."""
        return self._num_open == 0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        choices_per_prompt = len(self._choices) // len(self.prompt_token_ids)
        return Usage(
            prompt_tokens=sum(map(len, self.prompt_token_ids)),
            completion_tokens=sum(choice.num_tokens for choice in self._choices),
            cached_tokens=sum(choice.num_cached_tokens for choice in self._choices[::choices_per_prompt]),
        )

    async def __aenter__(self) -> Self:
        self._timeout = asyncio.timeout_at(self._loop_time(self._limits[0]))
        await self._timeout.__aenter__()
        if len(self._choices) > 1:
            self._pumps = [asyncio.create_task(self._pump(choice)) for choice in self._choices]
        return self

    def _loop_time(self, seconds_from_arrival: float) -> float:
        elapsed = time.monotonic() - self._arrival
        return asyncio.get_running_loop().time() + seconds_from_arrival - elapsed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[ChoiceDelta]:
        if self._num_open == 0:
            raise StopAsyncIteration
        try:
            if self._pumps:
                deltas = await self._next_of_many()
            else:
                deltas = [self._choices[0].advance(await self._choices[0].stream.take())]
        except EngineGaveUp as error:
            raise _engine_error(error.output, self._client) from None
        for delta in deltas:
            if delta.finish_reason is not None:
                self._num_open -= 1
        self._note_output()
        return deltas

    async def _next_of_many(self) -> list[ChoiceDelta]:
        ready = [await self._ready.get()]
        while not self._ready.empty():
            ready.append(self._ready.get_nowait())
        deltas = []
        for choice, outputs in ready:
            if choice.finish_reason is None:  # a stop string may have ended it while more was on its way
                deltas.append(choice.advance(outputs))
        return deltas

    async def _pump(self, choice: RunningChoice) -> None:
        while True:
            outputs = await choice.stream.take()
            self._ready.put_nowait((choice, outputs))
            if not outputs or outputs[-1].finish_reason is not None:
                return

    def _note_output(self) -> None:
        now = time.monotonic()
        if self._last_output is not None:
            self._metrics.observe_inter_token(now - self._last_output)
        else:
            self._first_output = now
            self._metrics.observe_first_token(now - self._beginning.accepted)
            if self._timeout is not None and not self._timeout.expired():
                self._timeout.reschedule(self._loop_time(self._limits[1]))
        self._last_output = now

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._timeout is not None
        late = self._deadline_error() if self._timeout.expired() and isinstance(error, asyncio.CancelledError) else None
        self.close(late or error)
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise late or self._deadline_error() from None

    def _deadline_error(self) -> DeadlineExceededError:
        if self._first_output is None:
            return DeadlineExceededError(f"no token was ready within {self._limits[0]:g} s of the request: the server is busy, try later")
        return DeadlineExceededError(f"the answer was not finished within {self._limits[1]:g} s: ask for fewer tokens")

    def close(self, error: BaseException | None = None) -> None:
        """End it: abort what still runs and record how it ended.  A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for pump in self._pumps:
            pump.cancel()
        for choice in self._choices:
            if choice.finish_reason is None:
                choice.stream.close()
        status, reason = _outcome(error)
        if isinstance(error, GlmserveError):
            error.in_request_log = True
        self._on_end(self._record(200 if self._num_open == 0 and error is None else status, reason, error))

    def _record(self, status: int, reason_if_open: FinishReason, error: BaseException | None) -> RequestRecord:
        usage, beginning = self.usage, self._beginning
        return RequestRecord(
            request_id=self.request_id,
            status=status,
            num_prompt_tokens=usage.prompt_tokens,
            num_cached_tokens=usage.cached_tokens,
            e2e_seconds=time.monotonic() - beginning.accepted,
            first_token_seconds=None if self._first_output is None else self._first_output - beginning.accepted,
            choices=[choice.record(reason_if_open, beginning.submitted) for choice in self._choices],
            error=str(error) if isinstance(error, GlmserveError) else None,
            admission_seconds=beginning.tokenizing - beginning.accepted - beginning.turn_seconds,
            turn_seconds=beginning.turn_seconds,
            tokenize_seconds=beginning.submitted - beginning.tokenizing,
            slow_client_seconds=self.slow_client_seconds,
            operation=beginning.operation,
            traceparent=beginning.traceparent,
        )


def _outcome(error: BaseException | None) -> tuple[int, FinishReason]:
    """HTTP status, and how the choices ended that had not ended by themselves."""
    if isinstance(error, DeadlineExceededError):
        return error.http_status, FinishReason.TIMEOUT
    if isinstance(error, GlmserveError):
        return error.http_status, FinishReason.ERROR
    if error is None or isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CLIENT_GONE_STATUS, FinishReason.ABORT
    return 500, FinishReason.ERROR
