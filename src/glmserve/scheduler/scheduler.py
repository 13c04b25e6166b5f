"""Decides what each step computes.  Pure bookkeeping on the host: it never waits for the GPU.

Order of service is a *virtual arrival*: arrival time plus `aging_seconds` for each priority class.  A lower class runs first, but a
request that has waited long enough comes before newer ones of a better class, so nothing starves.
Prefill and decode steps are separate, and alternate while there is work for both: a burst of prompts delays running streams by one
prefill step at a time, and running streams never keep a prompt waiting for more than one decode step.  A prefill step samples the next
token of each request whose newest token it reaches; where the newest token alone is left, that is a decode step's.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from glmserve.models.spec import ModelSpec
from glmserve.protocol.messages import FinishReason, WaitCause
from glmserve.scheduler.batch import PrefillChunk, ScheduledBatch
from glmserve.scheduler.batching import Batching, ContinuousBatching
from glmserve.scheduler.kv_cache_manager import KVCacheManager
from glmserve.scheduler.request import Request, Wait

RESERVE_SHARE = 100  # one block in so many stays free for running requests to grow into before a new one is admitted


class Scheduler:
    """Waiting and running requests of one engine.

    `schedule` plans a step and advances the requests as if it had been computed; `update` takes the sampled ids, one or more steps later.
    """

    def __init__(
        self,
        spec: ModelSpec,
        kv_cache: KVCacheManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        aging_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        batching: Batching | None = None,
    ) -> None:
        self.spec = spec
        self.kv_cache = kv_cache
        self.max_num_batched_tokens = max_num_batched_tokens
        self.aging_seconds = aging_seconds
        self.clock = clock
        self.batching = batching or ContinuousBatching()
        self.running: dict[str, Request] = {}
        self.waiting: list[tuple[float, int, Request]] = []  # a heap by virtual arrival
        self.requests: dict[str, Request] = {}
        self._ending: set[str] = set()  # requests whose last token is on its way and who gave their place away
        self.num_preemptions = 0
        self._last_wait = (0.0, Wait())  # when the first in the queue last had to wait, and why
        self._last_waiter: Request | None = None
        self.held_back = False  # the batching policy, not memory, kept the first in the queue waiting in the last plan
        self._sequence = 0
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._eos = frozenset(spec.eos_token_ids)
        self._last_was_prefill = False

    def add(self, request: Request) -> None:
        """Queue a request.  The caller has checked that its longest form fits into the K/V pool."""
        self.requests[request.request_id] = request
        self._enqueue(request)

    def abort(self, request_id: str) -> None:
        """End a request at once and free its blocks; nothing happens when it is unknown, and so has already ended."""
        request = self.requests.get(request_id)
        if request is not None:
            self._finish(request, FinishReason.ABORT)

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun, or were pushed back."""
        return len(self.requests) - len(self.running) - len(self._ending)

    def schedule(self) -> ScheduledBatch | None:
        """Plan one step, or None when nothing can be computed now."""
        self.held_back = False
        # After a prompt the running streams have their token first.
        batch = self._schedule_decode() if self._last_was_prefill else None
        # Last, decode once more: a request whose context was cached is admitted without any prompt to compute.
        batch = batch or self._schedule_prefill() or self._schedule_decode()
        if batch is not None:
            self._last_was_prefill = batch.is_prefill
        return batch

    def update(self, batch: ScheduledBatch, sampled_token_ids: list[int]) -> list[Request]:
        """Take the ids a step sampled, -1 where the logits were not numbers.  Returns the requests that got a token.

        A request that ended meanwhile is passed over: its last step was computed before the host knew.
        """
        advanced = []
        for request, token_id in zip(batch.requests, sampled_token_ids, strict=True):
            if request.finish_reason is not None:
                continue
            request.num_in_flight -= 1
            if token_id < 0:
                self._finish(request, FinishReason.ERROR)
            else:
                request.token_ids.append(token_id)
                reason = self._reason_to_stop(request, token_id)
                if reason is not None:
                    self._finish(request, reason)
            advanced.append(request)
        return advanced

    def _schedule_prefill(self) -> ScheduledBatch | None:
        budget = self.max_num_batched_tokens
        chunks: list[PrefillChunk] = []
        for request in self.running.values():  # chunked or preempted prompts go on first
            budget = self._add_chunk(request, budget, chunks)
        self._admit(budget, chunks)
        for chunk in chunks:
            self.kv_cache.remember_computed(chunk.request)
        # Only now that the plan is final: until here a chunk may have been dropped for a request of a better class.
        sampling = [chunk.request for chunk in chunks if chunk.request.num_computed_tokens == chunk.request.num_tokens]
        for request in sampling:
            request.num_in_flight += 1
        return ScheduledBatch(chunks, sampling, self.kv_cache.take_block_copies()) if chunks else None

    def _admit(self, budget: int, chunks: list[PrefillChunk]) -> None:
        postponed = []
        contexts_under_way = {self.kv_cache.context_key(chunk.request) for chunk in chunks} - {None}
        while self.waiting and budget > 0:
            _, _, request = self.waiting[0]
            if request.finish_reason is not None or request.request_id in self.running:
                heapq.heappop(self.waiting)
                continue
            if not self.batching.admits(request, self.running, self.requests, self.clock()):
                self.held_back = True
                self._note_wait(request, WaitCause.BATCHING)
                break
            key = self.kv_cache.context_key(request)
            if key in contexts_under_way:  # its twin is being computed: next step it costs nothing
                postponed.append(heapq.heappop(self.waiting))
                continue
            if request.num_in_flight:  # pushed back with a token under way: recompute when the host knows it, one step from now
                break
            if chunks and self.spec.attention == "prefix" and request.context_len > budget:
                break
            if not self._make_room(request, chunks):
                self._note_wait(request, WaitCause.KV_FULL if self._free_rows else WaitCause.BATCH_FULL)
                break
            heapq.heappop(self.waiting)
            self._start(request)
            before = len(chunks)
            budget = self._add_chunk(request, budget, chunks)
            if key is not None and len(chunks) > before:
                contexts_under_way.add(key)
        for entry in postponed:
            heapq.heappush(self.waiting, entry)

    def _make_room(self, request: Request, chunks: list[PrefillChunk]) -> bool:
        """Admit into the K/V cache, pushing back running requests of a worse class, and out of this step, if that is what it takes."""
        while True:
            reserve = self.kv_cache.pool.num_blocks // RESERVE_SHARE if self.running else 0
            if self._free_rows and self.kv_cache.admit(request, reserve):
                return True
            if self._take_places_of_ending():
                continue
            worse = [
                other for other in self.running.values() if other.priority > request.priority and self._key(other) > self._key(request)
            ]
            if not worse:
                return False
            victim = max(worse, key=self._key)
            self._preempt(victim)
            chunks[:] = [chunk for chunk in chunks if chunk.request is not victim]

    def _take_places_of_ending(self) -> bool:
        """Take row and blocks of those whose last token is on its way: the device has done with both before it begins the next step.

        So their successors need not wait for the host to read that token.  False where there are none.
        """
        ending = [request for request in self.running.values() if request.output_complete]
        for request in ending:
            self.kv_cache.remember_computed(request)
            self._stop_running(request)
            self._ending.add(request.request_id)
        return bool(ending)

    def _start(self, request: Request) -> None:
        request.row = self._free_rows.pop()
        self.running[request.request_id] = request
        now = self.clock()
        if not request.first_scheduled_time:
            request.first_scheduled_time = now
            since, wait = self._last_wait
            if since >= request.arrival_time:
                request.wait = wait
        elif request.preempted_since:
            request.preempted_seconds += now - request.preempted_since

    def _note_wait(self, request: Request, cause: WaitCause) -> None:
        _, last = self._last_wait
        if request is not self._last_waiter or cause is not last.cause:  # not at each step: it looks at all that run
            self._last_waiter = request
            largest = max(self.running.values(), key=lambda other: len(other.block_ids), default=None)
            last = Wait(cause, len(self.running), largest.request_id if largest else "")
        self._last_wait = (self.clock(), last)

    def _add_chunk(self, request: Request, budget: int, chunks: list[PrefillChunk]) -> int:
        start, context_len = request.num_computed_tokens, request.context_len
        if request.ready_to_decode:
            return budget
        if start < context_len and chunks and context_len > budget:  # a context is never split; alone it may exceed the budget
            return budget
        end = min(request.num_tokens, max(context_len, start + budget))
        if end <= start:
            return budget
        chunks.append(PrefillChunk(request, start, end - start))
        request.num_computed_tokens = end
        return budget - (end - start)

    def _schedule_decode(self) -> ScheduledBatch | None:
        requests = [request for request in self.running.values() if request.ready_to_decode and not request.output_complete]
        if not requests:
            return None
        for request in sorted(requests, key=self._key):
            while request.request_id in self.running and not self.kv_cache.grow(request):
                if not self._take_places_of_ending():
                    self._preempt(max(self.running.values(), key=self._key))
        scheduled = [request for request in requests if request.request_id in self.running]
        for request in scheduled:
            request.num_computed_tokens += 1
            request.num_in_flight += 1
        return ScheduledBatch(requests=scheduled, block_copies=self.kv_cache.take_block_copies()) if scheduled else None

    def _preempt(self, request: Request) -> None:
        """Push a running request back; its context and what it has generated so far are recomputed, with the border where it was."""
        self._stop_running(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.preempted_since = self.clock()
        self.num_preemptions += 1
        self._enqueue(request)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        del self.requests[request.request_id]
        self._ending.discard(request.request_id)
        if request.request_id in self.running:
            self.kv_cache.remember_computed(request)
            self._stop_running(request)

    def _stop_running(self, request: Request) -> None:
        del self.running[request.request_id]
        self.kv_cache.free(request)
        self._free_rows.append(request.row)
        request.row = -1

    def _reason_to_stop(self, request: Request, token_id: int) -> FinishReason | None:
        if len(request.token_ids) - request.num_prompt_tokens >= request.params.min_tokens:
            if token_id in self._eos and not request.params.ignore_eos:
                return FinishReason.STOP
            if token_id in request.stop_token_ids:
                return FinishReason.STOP
        if len(request.token_ids) - request.num_prompt_tokens >= request.max_output_tokens:
            return FinishReason.LENGTH
        return None

    def _enqueue(self, request: Request) -> None:
        self._sequence += 1
        heapq.heappush(self.waiting, (self._key(request), self._sequence, request))

    def _key(self, request: Request) -> float:
        return request.arrival_time + request.priority * self.aging_seconds
