"""Text in, text out: prompts become engine requests, engine tokens become deltas of text.

A user's request of P prompts and n choices each becomes P x n engine requests.  `TextAnswer` is the running answer: entered
as a context manager it holds the request's deadlines, iterated it yields what is new, and left it has ended exactly once,
whatever happened: the engine told to stop what still ran, the place given back, the metrics and the log line written.
It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import msgspec

from glmserve.client.engine_client import EngineClient, OutputStream
from glmserve.client.supervisor import EngineState
from glmserve.models.spec import ModelSpec
from glmserve.observe.metrics import Metrics
from glmserve.observe.request_log import ChoiceRecord, RequestLog, RequestRecord
from glmserve.protocol.errors import (
    ContextLengthError,
    DeadlineExceededError,
    EngineUnavailableError,
    GlmserveError,
    InvalidRequestError,
)
from glmserve.protocol.messages import EngineRequest, FinishReason, RequestOutput, RequestTimes, TokenLogprobs
from glmserve.protocol.sampling_params import SEED_RANGE, SamplingParams
from glmserve.text.chat_format import ChatMessage
from glmserve.text.output_text import OutputText
from glmserve.text.tokenizer import Tokenizer

INLINE_CHARACTERS = 2000  # tokenizing this much takes less time than handing it to a thread
CLIENT_GONE_STATUS = 499  # nginx's number for a client that closed the connection; it is logged, never sent


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, to be put in the model's own format."""

    messages: list[ChatMessage]


Prompt = str | list[int] | ChatPrompt


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate.  `max_length` limits prompt plus answer, as ChatGLM-6B's protocol has it; None is no such limit."""

    request_id: str
    prompts: list[Prompt]
    sampling_params: SamplingParams
    priority: int = 0
    max_length: int | None = None
    arrival_time: float = field(default_factory=time.monotonic)


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


class _Choice:
    """One sequence being generated."""

    def __init__(self, index: int, stream: OutputStream, text: OutputText | None, watches_text: bool) -> None:
        self.index = index
        self.stream = stream
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.times: RequestTimes | None = None
        self._text = text
        self._watches_text = watches_text  # stop strings: tokens after the one that completes a stop string do not count

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

    def _add_text(self, delta: ChoiceDelta, text: OutputText) -> None:
        ended = delta.finish_reason is not None
        if not self._watches_text:
            delta.text = text.push(delta.token_ids, ended).text
            return
        parts, num_tokens = [], len(delta.token_ids)
        for position in range(max(1, num_tokens)):
            is_last = position >= num_tokens - 1
            piece = text.push(delta.token_ids[position : position + 1], ended and is_last)
            parts.append(piece.text)
            if piece.stopped_by is not None:
                self._stop_at(delta, position + 1, piece.stopped_by)
                break
        delta.text = "".join(parts)

    def _stop_at(self, delta: ChoiceDelta, num_tokens: int, stop: str) -> None:
        if delta.finish_reason is None:
            self.stream.close()
        delta.token_ids = delta.token_ids[:num_tokens]
        delta.logprobs = delta.logprobs[:num_tokens] if delta.logprobs else None
        delta.finish_reason, delta.stop_reason = FinishReason.STOP, stop

    def record(self, reason_if_open: FinishReason) -> ChoiceRecord:
        """How it ended, for log and metrics."""
        record = ChoiceRecord(self.finish_reason or reason_if_open, self.num_tokens)
        if (times := self.times) is not None:
            record.num_preemptions = times.num_preemptions
            record.queue_seconds = max(0.0, times.first_scheduled - times.arrival)
            record.prefill_seconds = max(0.0, times.first_token - times.first_scheduled)
            record.decode_seconds = max(0.0, times.finished - times.first_token)
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
    if client.state in (EngineState.DRAINING, EngineState.STOPPED):
        return EngineUnavailableError("the answer was cut off because the server is shutting down: send the request again")
    if client.state is EngineState.READY:
        return EngineRequestError(output.error or "the engine could not go on with this request")
    return EngineUnavailableError(f"the engine was lost while it wrote the answer ({output.error or 'no reason given'}): send the request again")


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
        request: GenerationRequest,
        prompt_token_ids: list[list[int]],
        choices: list[_Choice],
        limits: tuple[float, float],
        on_end: Callable[[RequestRecord], None],
        metrics: Metrics,
        client: EngineClient,
    ) -> None:
        self._client = client
        self.request_id = request.request_id
        self.prompt_token_ids = prompt_token_ids
        self._arrival = request.arrival_time
        self._choices = choices
        self._limits = limits  # seconds from arrival to the first token, and to the end
        self._on_end = on_end
        self._metrics = metrics
        self._timeout: asyncio.Timeout | None = None
        self._num_open = len(choices)
        self._last_output: float | None = None
        self._first_output: float | None = None
        self._closed = False
        self._ready: asyncio.Queue[tuple[_Choice, list[RequestOutput]]] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []

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

    async def _pump(self, choice: _Choice) -> None:
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
            self._metrics.observe_first_token(now - self._arrival)
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
            raise self._deadline_error() from None

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
        self._on_end(self._record(200 if self._num_open == 0 and error is None else status, reason, error))

    def _record(self, status: int, reason_if_open: FinishReason, error: BaseException | None) -> RequestRecord:
        usage = self.usage
        return RequestRecord(
            request_id=self.request_id,
            status=status,
            num_prompt_tokens=usage.prompt_tokens,
            num_cached_tokens=usage.cached_tokens,
            e2e_seconds=time.monotonic() - self._arrival,
            first_token_seconds=None if self._first_output is None else self._first_output - self._arrival,
            choices=[choice.record(reason_if_open) for choice in self._choices],
            error=str(error) if isinstance(error, GlmserveError) else None,
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


class TextGenerator:
    """Starts answers.  `tokenizer` is None where the server was started without one: then prompts are token ids."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer | None,
        spec: ModelSpec,
        metrics: Metrics,
        request_log: RequestLog,
        first_token_timeout: float,
        request_timeout: float,
    ) -> None:
        self._client = client
        self.tokenizer = tokenizer
        self._spec = spec
        self._metrics = metrics
        self._request_log = request_log
        self._limits = (min(first_token_timeout, request_timeout), request_timeout)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenizer")

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt plus answer: the engine's own limit once it is loaded, the model's before."""
        ready = self._client.ready
        return self._spec.max_model_len if ready is None else min(ready.max_model_len, ready.num_kv_tokens)

    async def start(
        self,
        request: GenerationRequest,
        admit: Callable[[int, int], None] = lambda num_requests, num_tokens: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> TextAnswer:
        """Tokenize, check and hand to the engine.

        `admit(num_requests, num_tokens)` is called once the true size is known and may raise; `on_close` is called when
        the answer has ended, and not at all if this raises.  Raises InvalidRequestError, ContextLengthError and
        EngineUnavailableError.
        """
        params = request.sampling_params
        self._check_token_ids(params)
        prompts = [await self.encode(prompt) for prompt in request.prompts]
        budgets = [self._max_tokens(len(token_ids), request) for token_ids in prompts]
        admit(len(prompts) * params.n, sum(map(len, prompts)))
        choices = self._submit(request, prompts, budgets)

        def on_end(record: RequestRecord) -> None:
            on_close()
            self._metrics.observe_request(record)
            self._request_log.write(record)

        return TextAnswer(request, prompts, choices, self._limits, on_end, self._metrics, self._client)

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, off the event loop where it is long.  Raises InvalidRequestError for one that has none."""
        token_ids = prompt if isinstance(prompt, list) else await self._tokenize(prompt)
        if not token_ids:
            raise InvalidRequestError("the prompt is empty: give at least one token", "prompt")
        if isinstance(prompt, list):
            self._check_prompt_ids(token_ids)
        return token_ids

    async def _tokenize(self, prompt: str | ChatPrompt) -> list[int]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("this server has no tokenizer: send token ids to /v1/completions", "prompt")
        if isinstance(prompt, str):
            text: str = prompt
            if len(prompt) <= INLINE_CHARACTERS:
                return tokenizer.encode(prompt)
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: tokenizer.encode(text))
        messages = prompt.messages
        if sum(len(message.content) for message in messages) <= INLINE_CHARACTERS:
            return tokenizer.encode_chat(messages)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: tokenizer.encode_chat(messages))

    def _check_prompt_ids(self, token_ids: list[int]) -> None:
        vocab_size, bos = self._spec.vocab_size, self._spec.bos_token_id
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            raise InvalidRequestError(f"token ids of the prompt must be from 0 to {vocab_size - 1}", "prompt")
        if self._spec.attention == "prefix" and bos not in token_ids:
            raise InvalidRequestError(f"a prompt of token ids must hold the id {bos} where the answer begins, as this model reads it", "prompt")

    def _check_token_ids(self, params: SamplingParams) -> None:
        for param, token_ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token_id in token_ids:
                if not 0 <= token_id < self._spec.vocab_size:
                    raise InvalidRequestError(f"{param} has the token id {token_id}; ids go from 0 to {self._spec.vocab_size - 1}", param)

    def _max_tokens(self, num_prompt_tokens: int, request: GenerationRequest) -> int:
        """Most tokens to generate after a prompt.  Raises ContextLengthError where there is no room for them."""
        room = self.max_model_len - num_prompt_tokens
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {num_prompt_tokens} tokens, but prompt and answer together have room for {self.max_model_len}: shorten it",
                "prompt" if not isinstance(request.prompts[0], ChatPrompt) else "messages",
            )
        if request.max_length is not None:
            if num_prompt_tokens >= request.max_length:
                raise ContextLengthError(
                    f"the prompt has {num_prompt_tokens} tokens and max_length, which counts prompt and answer, is {request.max_length}: "
                    "shorten the prompt or history, or raise max_length",
                    "max_length",
                )
            room = min(room, request.max_length - num_prompt_tokens)
        asked = request.sampling_params.max_tokens
        if asked is None:
            return room
        if asked > room:
            raise ContextLengthError(
                f"the prompt has {num_prompt_tokens} tokens and max_tokens is {asked}, but prompt and answer together have room for "
                f"{self.max_model_len}: shorten the prompt or ask for at most {room}",
                "max_tokens",
            )
        return asked

    def _submit(self, request: GenerationRequest, prompts: list[list[int]], budgets: list[int]) -> list[_Choice]:
        params = request.sampling_params
        choices: list[_Choice] = []
        try:
            for prompt_index, token_ids in enumerate(prompts):
                for k in range(params.n):
                    choice_params = _choice_params(params, k, budgets[prompt_index])
                    choices.append(self._submit_choice(request, len(choices), token_ids, choice_params))
        except BaseException:
            for choice in choices:
                choice.stream.close()
            raise
        return choices

    def _submit_choice(self, request: GenerationRequest, index: int, token_ids: list[int], params: SamplingParams) -> _Choice:
        engine_request = EngineRequest(
            request_id=f"{request.request_id}-{index}",
            prompt_token_ids=token_ids,
            sampling_params=params,
            arrival_time=request.arrival_time,
            priority=request.priority,
        )
        chat = isinstance(request.prompts[0], ChatPrompt)
        has_text = self.tokenizer is not None and params.detokenize
        text = OutputText(self.tokenizer, params, chat) if has_text and self.tokenizer is not None else None
        return _Choice(index, self._client.submit(engine_request), text, bool(params.stop))


def _choice_params(params: SamplingParams, k: int, max_tokens: int) -> SamplingParams:
    """The parameters of choice `k`: its own seed, so that choices differ and yet can be repeated."""
    seed = params.seed
    if seed is not None and k:
        seed = seed + k if seed + k in SEED_RANGE else seed + k - 2**64
    return msgspec.structs.replace(params, n=1, seed=seed, max_tokens=max_tokens, min_tokens=min(params.min_tokens, max_tokens))
