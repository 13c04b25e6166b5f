"""Text in, text out: prompts become engine requests, whose running answer is `answer.TextAnswer`.

A user's request of P prompts and n choices each becomes P x n engine requests.  It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from glmserve.client.engine_client import EngineClient
from glmserve.models.spec import ModelSpec
from glmserve.observe.metrics import Metrics
from glmserve.observe.request_log import RequestLog
from glmserve.observe.request_record import TRACEPARENT, RequestRecord
from glmserve.protocol.errors import ContextLengthError, InvalidRequestError
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams, seed_of_choice
from glmserve.text.answer import Beginning, RunningChoice, TextAnswer
from glmserve.text.chat_format import ChatMessage
from glmserve.text.output_text import OutputText
from glmserve.text.tokenizer import Tokenizer

INLINE_CHARACTERS = 2000  # tokenizing this much takes less time than handing it to a thread
MESSAGE_CHARACTERS = 20  # that a chat format puts around a message, about

T = TypeVar("T")


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
        self._serial = itertools.count()
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
        accepted_time: float | None = None,
        turn_seconds: float = 0.0,
    ) -> TextAnswer:
        """Tokenize, check and hand to the engine.

        `admit(num_requests, num_tokens)` is called once the true size is known and may raise; `on_close` is called when
        the answer has ended, and not at all if this raises.  `accepted_time` is from when the client counts, the request's
        arrival_time by default; since then it waited `turn_seconds` for its turn.  Raises InvalidRequestError,
        ContextLengthError and EngineUnavailableError.
        """
        params = request.sampling_params
        self._check_token_ids(params)
        if params.stop and self.tokenizer is None:
            raise InvalidRequestError("this server has no tokenizer, so it cannot see stop strings: use stop_token_ids", "stop")
        tokenizing = time.monotonic()
        with self._client.http_work.tokenizing():
            prompts = [await self.encode(prompt) for prompt in request.prompts]
        budgets = [self._max_tokens(len(token_ids), request) for token_ids in prompts]
        admit(len(prompts) * params.n, sum(map(len, prompts)))
        accepted = request.arrival_time if accepted_time is None else accepted_time
        operation = "chat" if isinstance(request.prompts[0], ChatPrompt) else "text_completion"
        beginning = Beginning(accepted, tokenizing, time.monotonic(), operation, TRACEPARENT.get(), turn_seconds)
        choices = self._submit(request, prompts, budgets)

        def on_end(record: RequestRecord) -> None:
            on_close()
            self._metrics.observe_request(record)
            self._request_log.write(record)

        return TextAnswer(
            request.request_id, request.arrival_time, beginning, prompts, choices, self._limits, on_end, self._metrics, self._client
        )

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
            return await self.tokenizing(len(prompt), lambda: tokenizer.encode(text))
        messages = prompt.messages
        size = sum(len(message.content) + MESSAGE_CHARACTERS for message in messages)
        return await self.tokenizing(size, lambda: tokenizer.encode_chat(messages))

    async def tokenizing(self, size: int, work: Callable[[], T]) -> T:
        """What `work` of the tokenizer gives; where its `size`, in characters or tokens, is large, off the event loop."""
        if size <= INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _check_prompt_ids(self, token_ids: list[int]) -> None:
        vocab_size, bos = self._spec.vocab_size, self._spec.bos_token_id
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            raise InvalidRequestError(f"token ids of the prompt must be from 0 to {vocab_size - 1}", "prompt")
        if self._spec.attention != "prefix":
            return
        if bos not in token_ids:
            raise InvalidRequestError(f"a prompt of token ids must hold the id {bos} where the answer begins", "prompt")
        gmask, mask = self._spec.gmask_token_id, self._spec.mask_token_id
        if gmask not in token_ids and mask not in token_ids:
            raise InvalidRequestError(f"a prompt of token ids must hold the id {gmask} ([gMASK]) or {mask} ([MASK])", "prompt")

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

    def _submit(self, request: GenerationRequest, prompts: list[list[int]], budgets: list[int]) -> list[RunningChoice]:
        params = request.sampling_params
        choices: list[RunningChoice] = []
        engine_id = f"{request.request_id}.{next(self._serial)}"  # a client may send one X-Request-Id twice
        try:
            for prompt_index, token_ids in enumerate(prompts):
                for k in range(params.n):
                    choice_params = _choice_params(params, k, budgets[prompt_index])
                    choices.append(self._submit_choice(request, f"{engine_id}-{len(choices)}", len(choices), token_ids, choice_params))
        except BaseException:
            for choice in choices:
                choice.stream.close()
            raise
        return choices

    def _submit_choice(
        self, request: GenerationRequest, engine_id: str, index: int, token_ids: list[int], params: SamplingParams
    ) -> RunningChoice:
        engine_request = EngineRequest(
            request_id=engine_id,
            prompt_token_ids=token_ids,
            sampling_params=params,
            arrival_time=request.arrival_time,
            priority=request.priority,
        )
        chat = isinstance(request.prompts[0], ChatPrompt)
        text = OutputText(self.tokenizer, params, chat) if self.tokenizer is not None else None
        return RunningChoice(index, self._client.submit(engine_request), text)


def _choice_params(params: SamplingParams, k: int, max_tokens: int) -> SamplingParams:
    """The parameters of choice `k`."""
    seed = seed_of_choice(params.seed, k)
    return msgspec.structs.replace(params, n=1, seed=seed, max_tokens=max_tokens, min_tokens=min(params.min_tokens, max_tokens))
