"""EngineCore.step: schedule, execute, update.  The hot loop of the product, without sockets and without text.

On a GPU step n + 1 is scheduled and launched while step n runs: sampled ids stay on the device as the next step's input, and the host
reads them one step late.  On a CPU nothing could overlap, so each step is read at once.
"""

from __future__ import annotations

import random
import time

from glmserve.config import EngineConfig
from glmserve.engine.device_time import Idle
from glmserve.engine.loading import load_engine
from glmserve.engine.peaks import step_costs, with_peaks
from glmserve.engine.step_account import StepAccount
from glmserve.protocol.errors import ContextLengthError, InvalidRequestError
from glmserve.protocol.messages import EngineReady, EngineRequest, FinishReason, RequestOutput, RequestTimes, TokenLogprobs
from glmserve.protocol.stats import EngineStats
from glmserve.runner.loader import Progress
from glmserve.runner.model_runner import StepHandle
from glmserve.scheduler.batch import ScheduledBatch
from glmserve.scheduler.request import Request

GATHERING_SECONDS = 0.001  # between two looks at a window that gathers requests: no spinning on a CPU that tokenizes them


class EngineCore:
    """One model on one device.  Not thread-safe: one loop calls it."""

    def __init__(self, config: EngineConfig, progress: Progress = lambda _: None) -> None:
        """Loads `config.model`, a folder.  Raises ModelLoadError, NotEnoughMemoryError among them; `progress` is told what goes on."""
        loaded = load_engine(config, progress)
        self.spec = loaded.spec
        self.ready = with_peaks(loaded.ready)
        self.scheduler = loaded.scheduler
        self.runner = loaded.runner
        self.max_model_len = loaded.ready.max_model_len
        self._in_flight: StepHandle | None = None
        self._seeds = random.Random(config.seed)
        self.runner.clock.restart()
        self.account = StepAccount(time.monotonic(), step_costs(self.spec, self.ready), self.ready)

    def describe(self) -> EngineReady:
        """Where the model lies and what fits."""
        return self.ready

    def add_request(self, message: EngineRequest) -> None:
        """Queue a request.  Raises InvalidRequestError (also ContextLengthError) for one that can never run."""
        self._check(message)
        seed = message.sampling_params.seed
        request = Request(message, self.spec, self.max_model_len, self._seeds.getrandbits(63) if seed is None else seed)
        self.scheduler.add(request)
        self._note_idle(Idle.SCHEDULING)

    def abort_requests(self, request_ids: list[str]) -> None:
        """Forget these now and free their blocks; `step` reports nothing more of them.  Unknown ids are ignored."""
        for request_id in request_ids:
            self.scheduler.abort(request_id)
        if not self.has_unfinished_requests():
            self._note_idle(Idle.NO_WORK)

    def forget_cached(self) -> None:
        """Find no K/V again: after a step that failed, some that was to be written may not have been."""
        self.scheduler.kv_cache.pool.forget_all()

    def drain(self) -> None:
        """The engine is to end once it is done: from now on time without a step is put down to that."""
        self._note_idle(Idle.DRAINING)

    def prepare_ahead(self) -> bool:
        """While there is no request: a few hundredths of a second of work that a later step would wait for.  False where none is left."""
        return not self.has_unfinished_requests() and self.runner.prepare_ahead()

    def has_unfinished_requests(self) -> bool:
        """True while `step` has something to do or to report."""
        return bool(self.scheduler.requests or self._in_flight)

    def step(self) -> list[RequestOutput]:
        """Launch the next step and report the tokens of the one before it (on a CPU: of this one)."""
        batch = self.scheduler.schedule()
        launched = self._launch(batch) if batch is not None else None
        if launched is not None and not self.runner.on_gpu:
            outputs = self._collect(launched)
        else:
            previous, self._in_flight = self._in_flight, launched
            outputs = self._collect(previous) if previous is not None else []
        self._note_idle(self._why_idle(batch))
        if self.scheduler.held_back and batch is None and not outputs:
            time.sleep(GATHERING_SECONDS)
        return outputs

    def stats(self) -> EngineStats:
        """Counters and gauges as of now; the device's time up to the last step that was read."""
        stats, kv_cache = self.account.refresh(None if self._in_flight else time.monotonic()), self.scheduler.kv_cache
        stats.num_requests_running = len(self.scheduler.running)
        stats.num_requests_waiting = self.scheduler.num_waiting
        stats.kv_cache_usage_perc = kv_cache.pool.usage
        stats.num_preemptions = self.scheduler.num_preemptions
        stats.prefix_cache_queries = kv_cache.num_queried_tokens
        stats.prefix_cache_hits = kv_cache.num_hit_tokens
        return stats

    def take_without_work(self) -> list[tuple[float, float]]:
        """(from, to) of the device's time without any request, since the last call."""
        return self.account.device.take_without_work()

    def _check(self, message: EngineRequest) -> None:
        if message.request_id in self.scheduler.requests:
            raise InvalidRequestError(f"a request with the id {message.request_id!r} is already running", "request_id")
        token_ids = message.prompt_token_ids
        if not token_ids:
            raise InvalidRequestError("the prompt is empty: it has no tokens", "prompt")
        if len(token_ids) >= self.max_model_len:
            raise ContextLengthError(
                f"the prompt has {len(token_ids)} tokens; this model takes at most {self.max_model_len}, answer included. Shorten it.",
                "prompt",
            )
        if min(token_ids) < 0 or max(token_ids) >= self.spec.vocab_size:
            raise InvalidRequestError(f"token ids must be from 0 to {self.spec.vocab_size - 1}", "prompt")
        params = message.sampling_params
        for name, chosen in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            if strangers := [token_id for token_id in chosen if not 0 <= token_id < self.spec.vocab_size]:
                raise InvalidRequestError(
                    f"{name} has the token id {strangers[0]}; this model's go from 0 to {self.spec.vocab_size - 1}", name
                )

    def _launch(self, batch: ScheduledBatch) -> StepHandle:
        handle = self.runner.execute(batch)
        self.account.launched(batch)
        return handle

    def _why_idle(self, batch: ScheduledBatch | None) -> Idle:
        """Why the device would be idle from now until the next step."""
        if not self.has_unfinished_requests():
            return Idle.NO_WORK
        nothing_fits = batch is None and self._in_flight is None and not self.scheduler.held_back
        return Idle.KV_FULL if nothing_fits else Idle.SCHEDULING

    def _note_idle(self, cause: Idle) -> None:
        self.account.device.note(cause, time.monotonic())

    def _collect(self, handle: StepHandle) -> list[RequestOutput]:
        result = handle.wait()
        now = time.monotonic()
        self.account.device.step(*handle.read_time(), collected=now, is_prefill=handle.batch.is_prefill)
        logprobs = {id(request): entry for request, entry in zip(handle.batch.requests, result.logprobs, strict=True) if entry is not None}
        outputs = []
        for request in self.scheduler.update(handle.batch, result.token_ids):
            if not request.first_token_time:
                request.first_token_time, request.prefill_seconds_before = now, self.account.device.seconds.prefill
                request.prefill_tokens_before = self.account.stats.prompt_tokens
            failed = request.finish_reason == FinishReason.ERROR
            new_token_ids = [] if failed else request.token_ids[-1:]
            self.account.stats.generation_tokens += len(new_token_ids)
            outputs.append(self._output(request, new_token_ids, None if failed else logprobs.get(id(request))))
        return outputs

    def _output(self, request: Request, new_token_ids: list[int], logprobs: TokenLogprobs | None = None) -> RequestOutput:
        output = RequestOutput(request.request_id, new_token_ids, request.finish_reason)
        if logprobs is not None:
            output.logprobs = [logprobs]
        if request.finish_reason is None:
            return output
        output.num_cached_tokens = request.num_cached_tokens
        output.times = self._times(request)
        if request.finish_reason == FinishReason.ERROR:
            output.error = "the model gave scores that are not numbers; the weights may be damaged or the dtype too narrow"
        if request.finish_reason == FinishReason.STOP and new_token_ids and new_token_ids[-1] in request.stop_token_ids:
            output.stop_token_id = new_token_ids[-1]
        return output

    def _times(self, request: Request) -> RequestTimes:
        return RequestTimes(
            request.arrival_time,
            request.first_scheduled_time,
            request.first_token_time,
            time.monotonic(),
            request.num_preemptions,
            *request.wait,
            self.account.device.seconds.prefill - request.prefill_seconds_before,
            self.account.stats.prompt_tokens - request.prefill_tokens_before,
            request.preempted_seconds,
        )
