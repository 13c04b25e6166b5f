"""Offline face: prompts in, texts out, on the same engine and without HTTP.  Names and results are vLLM's."""

from __future__ import annotations

import gc
import itertools
import operator
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from glmserve.config import EngineConfig
from glmserve.engine.core import EngineCore
from glmserve.engine.loading import device_of
from glmserve.models.demo import resolve_model
from glmserve.protocol.errors import InvalidRequestError
from glmserve.protocol.messages import EngineRequest, FinishReason, RequestOutput, TokenLogprobs
from glmserve.protocol.sampling_params import SamplingParams, seed_of_choice
from glmserve.text.chat_format import parse_messages
from glmserve.text.output_text import OutputText
from glmserve.text.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Mapping[str, Any] | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Logprob:
    """Log probability of one token over the raw distribution (before penalties, temperature and filters); rank 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One answer.  `token_ids` includes the end token; `logprobs` has, for each token, the asked-for tokens by id."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum over the generated tokens."""
        if self.logprobs is None:
            return None
        return sum(step[token_id].logprob for token_id, step in zip(self.token_ids, self.logprobs, strict=True))


@dataclass
class RequestResult:
    """All answers to one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    finished: bool = False


# Prompt tokens a step on a GPU of at least so many bytes: twice the server's, since here no stream waits for its next token meanwhile.
_MOST_PROMPT_TOKENS, _LARGE_GPU = 16384, 70 * 2**30
# Objects that an interpreter may have frozen as it started: 375 in Python 3.12, none in 3.11 and 3.13.  With torch there are 300,000.
_FROZEN_BY_PYTHON = 10_000


class LLM:
    """A model on one device, for scripts and benchmarks.

    `model` is a folder, `demo` or `demo-en`; the other arguments are the server's flags, with underscores.  `allow_special_tokens`
    lets text become special tokens, as the released code does.  Raises ModelLoadError, and NotEnoughMemoryError among them, for a model
    that cannot be served.
    """

    def __init__(self, model: str = "demo", *, allow_special_tokens: bool = False, **settings: Any) -> None:
        folder = resolve_model(model)
        self.config = EngineConfig(model=str(folder), **settings)
        if self.config.max_num_batched_tokens is None and _memory_of(device_of(self.config.device)) >= _LARGE_GPU:
            self.config = self.config.model_copy(update={"max_num_batched_tokens": _MOST_PROMPT_TOKENS})
        self.engine = EngineCore(self.config)
        self.spec = self.engine.spec
        self.tokenizer: Tokenizer | None = (
            None if self.config.skip_tokenizer_init else load_tokenizer(folder, self.spec, allow_special_tokens)
        )
        self._numbers = itertools.count()

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer.  Raises InvalidRequestError with skip_tokenizer_init."""
        if self.tokenizer is None:
            raise InvalidRequestError("this LLM has no tokenizer (skip_tokenizer_init=True): pass {'prompt_token_ids': [...]}", "prompt")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's own `chat` samples with: for ChatGLM-6B temperature 0.95, top_p 0.7, top_k 50, up to the model's length."""
        defaults = self.spec.default_sampling
        return msgspec.convert({**defaults, "max_tokens": None}, SamplingParams) if defaults else SamplingParams()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestResult]:
        """Answers to prompts, in their order.

        A prompt is a text or {"prompt_token_ids": [...]}; `sampling_params` is one for all or one each (default: the model's own).
        Raises InvalidRequestError, and gives no answers at all, for a prompt or parameters that cannot be served.
        """
        listed = _as_list(prompts)
        encoded = ((prompt if isinstance(prompt, str) else None, self._encode(prompt)) for prompt in listed)
        return self._run(encoded, len(listed), sampling_params, use_tqdm, chat=False)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestResult]:
        """Answers to one conversation, or to several: each a list of {"role": …, "content": …}."""
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations = [cast(Messages, messages)] if single else list(cast(Sequence[Messages], messages))
        tokenizer = self.get_tokenizer()
        parsed = (parse_messages(list(conversation)) for conversation in conversations)
        prompts = ((tokenizer.render_chat(turns), tokenizer.encode_chat(turns)) for turns in parsed)
        return self._run(prompts, len(conversations), sampling_params, use_tqdm, chat=True)

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.get_tokenizer().encode(prompt)
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" in prompt:
                return _token_ids(prompt["prompt_token_ids"])
            if isinstance(prompt.get("prompt"), str):
                return self.get_tokenizer().encode(prompt["prompt"])
            raise InvalidRequestError("a prompt is a text, or a dict with prompt_token_ids or prompt (a text)", "prompt")
        return _token_ids(prompt)

    def _run(
        self,
        prompts: Iterable[tuple[str | None, list[int]]],
        count: int,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        show_progress: bool,
        chat: bool,
    ) -> list[RequestResult]:
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params or self.get_default_sampling_params()] * count
        if len(sampling_params) != count:
            raise InvalidRequestError(f"{count} prompts came with {len(sampling_params)} sampling_params: give one for all or one each")
        results: list[RequestResult] = []
        choices: dict[str, _Choice] = {}
        columns = (TextColumn("Processed prompts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        try:
            with _old_objects_left_alone(), Progress(*columns, transient=True) if show_progress else nullcontext() as progress:
                task = progress.add_task("", total=sum(params.n for params in sampling_params)) if progress else None
                for ended in self._answer(prompts, sampling_params, chat, results, choices):
                    if progress and task is not None:
                        progress.advance(task, ended)
        except BaseException:  # also Ctrl-C: the engine must not go on with what nobody will read
            self.engine.abort_requests(list(choices))
            self.engine.forget_cached()
            raise
        return results

    def _answer(
        self,
        prompts: Iterable[tuple[str | None, list[int]]],
        sampling_params: Sequence[SamplingParams],
        chat: bool,
        results: list[RequestResult],
        choices: dict[str, _Choice],
    ) -> Iterator[int]:
        """Hand everything in and step until it is done; gives how many choices each step ended.

        The first step begins as soon as it is full, and the GPU works while the rest is handed in.
        """
        num_open, num_tokens, begun = 0, 0, False
        for (text, token_ids), params in zip(prompts, sampling_params, strict=True):
            results.append(result := RequestResult(str(next(self._numbers)), text, token_ids, []))
            for index in range(params.n):
                self._submit(result, index, params, chat, choices)
            num_open, num_tokens = num_open + params.n, num_tokens + params.n * len(token_ids)
            if not begun and num_tokens >= self.engine.scheduler.max_num_batched_tokens:
                begun, ended = True, self._step(choices)
                num_open -= ended
                yield ended
        while num_open:
            ended = self._step(choices)
            num_open -= ended
            yield ended

    def _submit(self, result: RequestResult, index: int, params: SamplingParams, chat: bool, choices: dict[str, _Choice]) -> None:
        request_id = f"{result.request_id}-{index}"
        own = params if params.n == 1 else msgspec.structs.replace(params, n=1, seed=seed_of_choice(params.seed, index))
        if params.stop and self.tokenizer is None:
            raise InvalidRequestError("this LLM has no tokenizer, so it cannot see stop strings: use stop_token_ids", "stop")
        output = CompletionOutput(index, logprobs=None if params.logprobs is None else [])
        result.outputs.append(output)
        text = None if self.tokenizer is None else OutputText(self.tokenizer, params, chat)
        choices[request_id] = _Choice(request_id, result, output, text, self.tokenizer)  # before the engine has it, so that it is aborted
        self.engine.add_request(EngineRequest(request_id, result.prompt_token_ids, own, time.monotonic()))

    def _step(self, choices: dict[str, _Choice]) -> int:
        """One step of the engine; how many choices it ended."""
        ended = 0
        for output in self.engine.step():
            choice = choices.get(output.request_id)
            if choice is None or not choice.take(output):
                continue
            ended += 1
            if output.finish_reason is None:  # a stop string ended it, which the engine cannot see
                self.engine.abort_requests([output.request_id])
        return ended


@dataclass
class _Choice:
    request_id: str
    result: RequestResult
    output: CompletionOutput
    text: OutputText | None
    tokenizer: Tokenizer | None

    def take(self, update: RequestOutput) -> bool:
        """Add what a step brought; True when this choice has ended now."""
        output = self.output
        if output.finish_reason is not None:
            return False
        output.token_ids += update.new_token_ids
        if output.logprobs is not None:
            output.logprobs += [self._logprobs(step) for step in update.logprobs or []]
        finished = update.finish_reason is not None
        stopped_by = None
        if self.text is not None:
            delta = self.text.push(update.new_token_ids, finished)
            output.text += delta.text
            stopped_by = delta.stopped_by
        if stopped_by is not None:
            output.finish_reason, output.stop_reason = FinishReason.STOP.value, stopped_by
        elif update.finish_reason is not None:
            output.finish_reason, output.stop_reason = update.finish_reason.value, update.stop_token_id
        self.result.num_cached_tokens = max(self.result.num_cached_tokens, update.num_cached_tokens)
        self.result.finished = all(choice.finish_reason is not None for choice in self.result.outputs)
        if update.error:
            raise RuntimeError(update.error)
        return output.finish_reason is not None

    def _logprobs(self, step: TokenLogprobs) -> dict[int, Logprob]:
        entries: dict[int, Logprob] = {}
        for token_id, logprob, rank in zip(step.token_ids, step.logprobs, step.ranks, strict=True):
            decoded = None if self.tokenizer is None else self.tokenizer.token_text(token_id)
            entries.setdefault(token_id, Logprob(logprob, rank, decoded))
        return entries


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """What is there already is not walked by Python's collector, which with torch loaded takes a fifth of a second while the GPU waits."""
    if gc.get_freeze_count() > _FROZEN_BY_PYTHON:  # the caller has seen to that
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _memory_of(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping) or (prompts and isinstance(prompts[0], int)):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


def _token_ids(values: Any) -> list[int]:
    try:
        return list(map(operator.index, values))
    except TypeError:
        raise InvalidRequestError(f"prompt_token_ids must be a list of whole numbers, not {values!r:.80}", "prompt") from None
