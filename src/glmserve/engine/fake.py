"""An engine without a model: scripted tokens in place of computed ones.  No torch.

It ships with the product so that the HTTP wing can be tested and measured alone, and it can misbehave on purpose so that
supervision can be tested.  Start it through `EngineClient(..., engine_module="glmserve.engine.fake")`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from glmserve.config import EngineConfig
from glmserve.engine.device_time import Idle
from glmserve.engine.process import EngineArguments, ReportLoading, run_engine
from glmserve.engine.step_account import StepAccount
from glmserve.models.catalog import read_spec
from glmserve.protocol.errors import ContextLengthError, InvalidRequestError, ModelLoadError
from glmserve.protocol.messages import EngineReady, EngineRequest, FinishReason, RequestOutput, RequestTimes, TokenLogprobs
from glmserve.protocol.stats import EngineStats

logger = logging.getLogger(__name__)

DEFAULT_MAX_MODEL_LEN = 2048
NUM_KV_BLOCKS = 65536
EXIT_ON_PURPOSE = 3


class FakeOptions(BaseModel):
    """What the fake engine says, how fast, and how it fails.  Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alphabet: tuple[int, ...] = Field((), description="Token ids it says over and over. Default: it echoes the prompt.")
    eos_token_ids: tuple[int, ...] | None = Field(None, description="End tokens. Default: those of the model folder, or none.")
    tokens_per_step: int = Field(1, ge=1, description="Tokens each running request gets in a step.")
    step_seconds: float = Field(0.0, ge=0, description="Shortest time of a step.")
    load_seconds: float = Field(0.0, ge=0, description="How long it loads.")
    load_error: str = Field("", description="Fail to load with this message.")
    fault: Literal["none", "exit", "raise", "hang"] = Field("none", description="How it breaks in a step.")
    fault_after_steps: int = Field(1, ge=1, description="In which step it breaks.")
    fault_token_id: int | None = Field(None, description="Break only in a step that runs a prompt with this token.")
    fault_once_file: str = Field("", description="Break only while this file does not exist; it is made when breaking.")

    def as_arguments(self) -> tuple[str, ...]:
        """The extra command line of the engine process that has it behave so."""
        return ("--fake-options", self.model_dump_json())


class FakeCore:
    """A core whose step is cheap: it says scripted tokens for up to `max_num_seqs` requests at a time, first come first served."""

    def __init__(self, config: EngineConfig, options: FakeOptions) -> None:
        self._config = config
        self._options = options
        self._max_model_len, spec_eos = _model_limits(config)
        self._eos_token_ids = frozenset(spec_eos if options.eos_token_ids is None else options.eos_token_ids)
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._account = StepAccount(time.monotonic())
        self._stats = self._account.stats

    def add_request(self, request: EngineRequest) -> None:
        """Queues it.  Raises InvalidRequestError for an empty or over-long prompt."""
        prompt_len = len(request.prompt_token_ids)
        if prompt_len == 0:
            raise InvalidRequestError("the prompt is empty: send at least one token", "prompt")
        if prompt_len >= self._max_model_len:
            raise ContextLengthError(f"the prompt has {prompt_len} tokens, the model takes {self._max_model_len - 1}: shorten it")
        self._waiting.append(_Sequence(request, self._options.alphabet, self._max_model_len))
        self._account.device.note(Idle.SCHEDULING, time.monotonic())

    def abort_requests(self, request_ids: list[str]) -> None:
        """Forgets them at once; unknown ids are ignored."""
        gone = set(request_ids)
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request_id not in gone)
        self._running = [sequence for sequence in self._running if sequence.request_id not in gone]
        self._note_end_of_work()

    def prepare_ahead(self) -> bool:
        """Nothing to prepare."""
        return False

    def drain(self) -> None:
        """Idle time is put down to the end from now on."""
        self._account.device.note(Idle.DRAINING, time.monotonic())

    def has_unfinished_requests(self) -> bool:
        """True while a step has something to do."""
        return bool(self._running or self._waiting)

    def step(self) -> list[RequestOutput]:
        """One step for all running requests."""
        started = time.monotonic()
        self._stats.engine_steps += 1
        self._admit(started)
        self._break_on_purpose()
        self._stats.decode_batch_size.observe(len(self._running))
        self._stats.iteration_tokens_total.observe(len(self._running) * self._options.tokens_per_step)
        outputs = [sequence.advance(self._options.tokens_per_step, self._eos_token_ids) for sequence in self._running]
        self._sleep_until(started + self._options.step_seconds)
        self._finish(outputs)
        now = time.monotonic()
        self._account.device.step(started, 0.0, now - started, 0.0, collected=now, is_prefill=False)
        self._note_end_of_work()
        return outputs

    def stats(self) -> EngineStats:
        """The counters; a K/V "block" of the fake engine is one request's place."""
        self._account.refresh(time.monotonic())
        self._stats.num_requests_running = len(self._running)
        self._stats.num_requests_waiting = len(self._waiting)
        self._stats.kv_cache_usage_perc = min(1.0, len(self._running) / self._config.max_num_seqs)
        return self._stats

    def take_without_work(self) -> list[tuple[float, float]]:
        """Stretches of time without a request."""
        return self._account.device.take_without_work()

    def describe(self) -> EngineReady:
        """What a real engine says of itself, with nothing behind it."""
        return EngineReady(
            model=self._config.model,
            device="cpu",
            device_name="fake engine",
            dtype=self._config.dtype,
            max_model_len=self._max_model_len,
            max_num_seqs=self._config.max_num_seqs,
            num_kv_blocks=self._config.num_kv_blocks or NUM_KV_BLOCKS,
            block_size=self._config.block_size,
            weights_bytes=0,
            kv_cache_bytes=0,
            placement=[["fake engine: no weights", "cpu", "0 B"]],
            load_seconds={"total": self._options.load_seconds},
        )

    def _note_end_of_work(self) -> None:
        if not self.has_unfinished_requests():
            self._account.device.note(Idle.NO_WORK, time.monotonic())

    def _admit(self, now: float) -> None:
        while self._waiting and len(self._running) < self._config.max_num_seqs:
            sequence = self._waiting.popleft()
            sequence.first_scheduled = now
            self._stats.prompt_tokens += sequence.prompt_len
            self._running.append(sequence)

    def _finish(self, outputs: list[RequestOutput]) -> None:
        """Puts the times on what is done and takes it out of the batch."""
        now = time.monotonic()
        num_finished = 0
        for sequence, output in zip(self._running, outputs, strict=True):
            self._stats.generation_tokens += len(output.new_token_ids)
            sequence.first_token = sequence.first_token or now
            if output.finish_reason is not None:
                num_finished += 1
                output.times = RequestTimes(sequence.arrival, sequence.first_scheduled, sequence.first_token, now)
        if num_finished:
            self._running = [sequence for sequence in self._running if not sequence.finished]

    def _sleep_until(self, when: float) -> None:
        if (left := when - time.monotonic()) > 0:
            time.sleep(left)

    def _break_on_purpose(self) -> None:
        options = self._options
        if options.fault == "none" or self._stats.engine_steps < options.fault_after_steps:
            return
        if options.fault_token_id is not None and not any(options.fault_token_id in sequence.prompt for sequence in self._running):
            return
        if options.fault_once_file:
            if Path(options.fault_once_file).exists():
                return
            Path(options.fault_once_file).touch()
        logger.warning("the fake engine breaks on purpose: %s", options.fault)
        if options.fault == "exit":
            os._exit(EXIT_ON_PURPOSE)
        while options.fault == "hang":
            time.sleep(3600)
        raise RuntimeError("told to fail")


class _Sequence:
    """One request and its script."""

    __slots__ = (
        "arrival", "finished", "first_scheduled", "first_token", "max_tokens", "num_tokens", "params", "prompt", "prompt_len",
        "request_id", "script",
    )  # fmt: skip

    def __init__(self, request: EngineRequest, alphabet: tuple[int, ...], max_model_len: int) -> None:
        self.request_id = request.request_id
        self.prompt = request.prompt_token_ids
        self.prompt_len = len(request.prompt_token_ids)
        self.params = request.sampling_params
        self.script = alphabet or tuple(request.prompt_token_ids)
        room = max_model_len - self.prompt_len
        self.max_tokens = room if self.params.max_tokens is None else min(self.params.max_tokens, room)
        self.num_tokens = 0
        self.arrival = request.arrival_time
        self.first_scheduled = 0.0
        self.first_token = 0.0
        self.finished = False

    def advance(self, num_tokens: int, eos_token_ids: frozenset[int]) -> RequestOutput:
        """The next tokens, and how it ended if it did."""
        output = RequestOutput(self.request_id, [])
        for token_id in self._next_tokens(num_tokens):
            output.new_token_ids.append(token_id)
            self._end(output, token_id, eos_token_ids)
            if self.finished:
                break
        if self.params.logprobs is not None:
            output.logprobs = [_logprobs(token_id, self.params.logprobs) for token_id in output.new_token_ids]
        return output

    def _next_tokens(self, num_tokens: int) -> Iterator[int]:
        for _ in range(num_tokens):
            yield self.script[self.num_tokens % len(self.script)]

    def _end(self, output: RequestOutput, token_id: int, eos_token_ids: frozenset[int]) -> None:
        self.num_tokens += 1
        params = self.params
        if self.num_tokens > params.min_tokens:
            if token_id in eos_token_ids and not params.ignore_eos:
                output.finish_reason = FinishReason.STOP
            elif token_id in params.stop_token_ids:
                output.finish_reason = FinishReason.STOP
                output.stop_token_id = token_id
        if output.finish_reason is None and self.num_tokens >= self.max_tokens:
            output.finish_reason = FinishReason.LENGTH
        self.finished = output.finish_reason is not None


def _logprobs(token_id: int, num_best: int) -> TokenLogprobs:
    """Of the right shape: the sampled token is the best one, the following ids come after it."""
    best = list(range(token_id, token_id + num_best))
    ranks = [1, *(rank for rank, _ in zip(count(1), best, strict=False))]
    return TokenLogprobs(token_ids=[token_id, *best], logprobs=[-0.5 * rank for rank in ranks], ranks=ranks)


def _model_limits(config: EngineConfig) -> tuple[int, tuple[int, ...]]:
    """(max_model_len, end tokens) of the model folder where there is one."""
    if not Path(config.model).is_dir():
        return config.max_model_len or DEFAULT_MAX_MODEL_LEN, ()
    spec = read_spec(Path(config.model))
    return min(config.max_model_len or spec.max_model_len, spec.max_model_len), spec.eos_token_ids


def make_core(arguments: EngineArguments, report_loading: ReportLoading) -> FakeCore:
    """Pretends to load.  Raises ModelLoadError where told to."""
    options = FakeOptions()
    if arguments.extra:
        name, value = arguments.extra
        if name != "--fake-options":
            raise ModelLoadError(f"the fake engine does not know the argument {name}")
        options = FakeOptions.model_validate_json(value)
    report_loading("pretending to load")
    time.sleep(options.load_seconds)
    if options.load_error:
        raise ModelLoadError(options.load_error)
    return FakeCore(arguments.config, options)


def main() -> int:
    """The entry `python -m glmserve.engine.fake`."""
    arguments = EngineArguments.parse(sys.argv[1:])
    return run_engine(lambda report_loading: make_core(arguments, report_loading), arguments)


if __name__ == "__main__":
    sys.exit(main())
