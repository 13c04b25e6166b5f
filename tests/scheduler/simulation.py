"""A scheduler with a pretended device: K/V slots remember which history they hold, so a wrong block, copy or order shows at once.

The device runs batches in the order of launch, as a stream does; `lag` 1 lets the host read a batch's tokens only after the next one has
been scheduled, as on a GPU.  The pretended model's next token is a pure function of the tokens before it and of the seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from glmserve.models.spec import ModelSpec
from glmserve.protocol.messages import EngineRequest, FinishReason
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.scheduler.batch import ScheduledBatch
from glmserve.scheduler.batching import Mode, batching_of
from glmserve.scheduler.block_pool import BlockPool
from glmserve.scheduler.kv_cache_manager import KVCacheManager
from glmserve.scheduler.request import Request
from glmserve.scheduler.scheduler import Scheduler

VOCAB, BOS, GMASK, MASK, EOS = 24, 20, 21, 22, 23
Output = tuple[int, FinishReason | None]


def spec_of(attention: str) -> ModelSpec:
    """A model that exists as numbers alone."""
    prefix = attention == "prefix"
    return ModelSpec(
        family="pretended", attention=attention, rotary="2d" if prefix else "1d", num_layers=1, hidden_size=8, num_heads=1, num_kv_heads=1,
        head_dim=8, intermediate_size=8, vocab_size=VOCAB, max_model_len=64, norm_epsilon=1e-5, eos_token_ids=(EOS,),
        bos_token_id=BOS if prefix else None, gmask_token_id=GMASK if prefix else None, mask_token_id=MASK if prefix else None,
    )  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """One engine's shape.  `num_blocks` counts usable blocks."""

    attention: str = "prefix"
    num_blocks: int = 64
    block_size: int = 4
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 64
    caching: bool = True
    lag: int = 0
    run_length: int = 1
    max_model_len: int = 64
    num_soft_tokens: int = 0
    batching: Mode = "continuous"
    window: float = 2.5  # seconds; a step takes one


@dataclass
class Simulation:
    """Requests go in with `add`; `step` runs one step and checks every invariant; `outputs` holds what came out."""

    settings: Settings
    outputs: dict[str, list[Output]] = field(default_factory=dict)
    batches: list[ScheduledBatch] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        settings = self.settings
        self.spec = spec_of(settings.attention)
        self.pool = BlockPool(settings.num_blocks + 1, settings.run_length)
        cache = KVCacheManager(self.pool, settings.block_size, settings.attention == "prefix", settings.caching, settings.num_soft_tokens)
        self.scheduler = Scheduler(
            self.spec, cache, settings.max_num_seqs, settings.max_num_batched_tokens, aging_seconds=10.0, clock=lambda: self.now,
            batching=batching_of(settings.batching, settings.window, settings.max_num_seqs),
        )  # fmt: skip
        self.requests: dict[str, Request] = {}
        self._slots: dict[int, bytes] = {}  # slot -> digest of the history that its K/V depends on
        for index in range(settings.num_soft_tokens):
            self._slots[self._slot(cache.soft_blocks, index)] = _soft(index)
        self.num_soft_blocks = len(cache.soft_blocks)
        self._tokens: dict[str, list[int]] = {}  # what the device knows of each sequence
        self._last: dict[int, int] = {}  # row -> token it sampled last
        self._unread: list[tuple[ScheduledBatch, list[int]]] = []

    def add(self, name: str, prompt: list[int], params: SamplingParams, priority: int = 0, arrival: float | None = None) -> Request:
        message = EngineRequest(name, prompt, params, self.now if arrival is None else arrival, priority)
        request = Request(message, self.spec, self.settings.max_model_len, params.seed or 0)
        self.requests[name], self._tokens[name], self.outputs[name] = request, list(prompt), []
        self.scheduler.add(request)
        return request

    def step(self) -> ScheduledBatch | None:
        self.now += 1.0
        batch = self.scheduler.schedule()
        if batch is not None:
            self.batches.append(batch)
            self._check_plan(batch)
            self._unread.append((batch, self._execute(batch)))
        while len(self._unread) > (self.settings.lag if batch is not None else 0):
            self._read()
        self.check_books()
        return batch

    def run(self, max_steps: int = 3000) -> None:
        """Until all requests have ended; fails where that takes more than `max_steps`."""
        for _ in range(max_steps):
            if not self.scheduler.requests and not self._unread:
                return
            self.step()
        raise AssertionError(f"still unfinished after {max_steps} steps: {list(self.scheduler.requests)}")

    def tokens_of(self, name: str) -> list[int]:
        return [token for token, _ in self.outputs[name] if token >= 0]

    def reasons_of(self, name: str) -> list[FinishReason]:
        return [reason for _, reason in self.outputs[name] if reason is not None]

    def check_books(self) -> None:
        """Rows, blocks and reference counts add up."""
        running = list(self.scheduler.running.values())
        rows = [request.row for request in running]
        assert len(set(rows)) == len(rows) <= self.settings.max_num_seqs
        held = dict.fromkeys(self.scheduler.kv_cache.soft_blocks, 1)
        for request in running:
            assert len(set(request.block_ids)) == len(request.block_ids)
            for block in request.block_ids:
                held[block] = held.get(block, 0) + 1
        assert 0 not in held, "the null block was handed out"
        assert all(self.pool.ref_count(block) == held.get(block, 0) for block in range(self.settings.num_blocks + 1))
        assert self.pool.num_free == self.settings.num_blocks - len(held)
        assert all(not request.block_ids and request.row == -1 for request in self.requests.values() if request not in running)

    def _check_plan(self, batch: ScheduledBatch) -> None:
        assert batch.chunks or batch.requests
        members = [chunk.request for chunk in batch.chunks] or batch.requests
        reaching = [chunk for chunk in batch.chunks if chunk.start + chunk.length == len(self._tokens[chunk.request.request_id])]
        if batch.chunks:
            assert batch.requests == [chunk.request for chunk in reaching] == members[: len(reaching)], (
                "each newest token samples, no other"
            )
            assert all(chunk.length > 1 for chunk in reaching), "a newest token alone is a decode step's"
        assert len({request.request_id for request in members}) == len(members)
        assert all(self.scheduler.running.get(request.request_id) is request for request in members), "scheduled but not running"
        if batch.num_tokens > self.settings.max_num_batched_tokens and batch.is_prefill:
            [chunk] = batch.chunks
            assert (chunk.start, chunk.length) == (0, chunk.request.context_len), "only a lone context may exceed the budget"
        if self.settings.batching in ("serial", "async"):
            assert len(members) == 1, "two requests in one step"

    def _execute(self, batch: ScheduledBatch) -> list[int]:
        copied = {destination: [self._slots.get(slot) for slot in self._block_slots(source)] for source, destination in batch.block_copies}
        assert len(copied) == len(batch.block_copies), "two copies into one block"
        for destination, contents in copied.items():
            assert self.pool.ref_count(destination) == 1
            self._slots.update(zip(self._block_slots(destination), contents, strict=True))  # type: ignore[arg-type]
        written: set[int] = set()
        for chunk in batch.chunks:
            assert chunk.length > 0
            if chunk.start < chunk.request.context_len:
                assert chunk.start == 0 and chunk.length >= chunk.request.context_len, "a context was split or partly cached"
            stop = chunk.start + chunk.length
            assert chunk.request.token_ids[:stop] == self._tokens[chunk.request.request_id][:stop], "computed before the host knew it"
            self._write(chunk.request, chunk.start, stop, written)
        for request in [] if batch.chunks else batch.requests:
            index = request.num_computed_tokens - 1
            newest = request.token_ids[index] if index < len(request.token_ids) else self._last[request.row]
            assert newest == self._tokens[request.request_id][index], "the step's input is not the newest token"
            self._write(request, index, index + 1, written)
        return [self._sample(request) for request in batch.requests]

    def _sample(self, request: Request) -> int:
        tokens = self._tokens[request.request_id]
        assert request.num_computed_tokens == len(tokens) == request.num_tokens - 1, "sampled behind a token that is not the newest"
        token = next_token(tokens, request.num_prompt_tokens, request.params)
        tokens.append(token)
        self._last[request.row] = token
        return token

    def _write(self, request: Request, start: int, stop: int, written: set[int]) -> None:
        """Tokens [start, stop) see right histories in all slots before them, and write slots that nobody else uses."""
        soft, tokens = self.settings.num_soft_tokens, self._tokens[request.request_id]
        assert [self._slots.get(self._slot(request.block_ids, index)) for index in range(soft)] == [_soft(index) for index in range(soft)]
        for index in range(stop):
            slot = self._slot(request.block_ids, soft + index)
            block = slot // self.settings.block_size
            history = self._history(request, tokens, index)
            if index < start:
                assert self._slots.get(slot) == history, f"token {index} of {request.request_id} finds foreign K/V in block {block}"
                continue
            assert self.pool.ref_count(block) == 1, "wrote into a shared block"
            assert slot not in written, "two tokens wrote one slot in one step"
            written.add(slot)
            self._slots[slot] = history

    def _history(self, request: Request, tokens: list[int], index: int) -> bytes:
        """Digest of all that K/V of token `index` depends on: a context token sees its whole context."""
        seen = tokens[: max(index + 1, request.context_len)]
        return hashlib.blake2b(bytes([index, request.context_len, *(token % 256 for token in seen)]), digest_size=8).digest()

    def _slot(self, block_ids: list[int], place: int) -> int:
        """Of the token at `place`, soft tokens counted."""
        return block_ids[place // self.settings.block_size] * self.settings.block_size + place % self.settings.block_size

    def _block_slots(self, block: int) -> range:
        return range(block * self.settings.block_size, (block + 1) * self.settings.block_size)

    def _read(self) -> None:
        batch, sampled = self._unread.pop(0)
        if not batch.requests:
            return
        for request in self.scheduler.update(batch, sampled):
            last = -1 if request.finish_reason == FinishReason.ERROR else request.token_ids[-1]
            self.outputs[request.request_id].append((last, request.finish_reason))


def _soft(index: int) -> bytes:
    """What the slot of a soft token holds."""
    return b"soft %d" % index


def next_token(tokens: list[int], num_prompt_tokens: int, params: SamplingParams) -> int:
    """The pretended model: -1 (not a number) for seeds that say so, an end token now and then, else a plain token."""
    digest = hashlib.blake2b(bytes(token % 256 for token in tokens) + repr(params.seed).encode(), digest_size=4).digest()
    count = len(tokens) - num_prompt_tokens + 1  # this token included
    if params.seed is not None and params.seed < 0 and count >= -params.seed:
        return -1
    token = EOS if digest[0] < 20 else digest[1] % BOS
    stops = {EOS, *params.stop_token_ids}
    return next(t for t in range(BOS) if t not in stops) if count <= params.min_tokens and token in stops else token


def expected_answer(prompt: list[int], params: SamplingParams, max_model_len: int) -> tuple[list[int], FinishReason]:
    """What a request must give whoever it shares the engine with."""
    tokens = list(prompt)
    limit = min(max_model_len - len(prompt), params.max_tokens or max_model_len)
    while True:
        token = next_token(tokens, len(prompt), params)
        if token < 0:
            return tokens[len(prompt) :], FinishReason.ERROR
        tokens.append(token)
        count = len(tokens) - len(prompt)
        if count >= params.min_tokens and ((token == EOS and not params.ignore_eos) or token in params.stop_token_ids):
            return tokens[len(prompt) :], FinishReason.STOP
        if count >= limit:
            return tokens[len(prompt) :], FinishReason.LENGTH
