"""Runs scheduled batches on the device.  It knows tensors and requests; it decides nothing."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch

from glmserve.kernels.decode_pieces import num_more_programs
from glmserve.layers.attention import NewestTokens
from glmserve.models.registry import Model
from glmserve.models.spec import ModelSpec
from glmserve.protocol.messages import TokenLogprobs
from glmserve.runner.cuda_graph import DecodeGraphs, GraphMemory
from glmserve.runner.input_batch import DecodeInputs, PrefillArrays, prefill_arrays, prefill_inputs
from glmserve.runner.kv_pool import KVPool
from glmserve.runner.prompt_graphs import MOST_TOKENS, PromptGraphs, PromptShape
from glmserve.runner.sampler import Sampled, Sampler
from glmserve.runner.step_clock import EventMarker, HostMarker, StepClock, StepMarks, StepTime
from glmserve.scheduler.batch import ScheduledBatch
from glmserve.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class StepResult:
    """The ids that a step sampled and, for those requests that asked, their log probabilities."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


class StepHandle:
    """A launched step whose results are still on their way to the host."""

    def __init__(self, batch: ScheduledBatch, sampled: Sampled | None, clock: StepClock, marks: StepMarks) -> None:
        """sampled: with token ids where the host reads them; what else there is may still be on the device."""
        self.batch = batch
        self._sampled = sampled
        self._clock = clock
        self._marks = marks
        if sampled is not None:
            more = (sampled.top_ids, sampled.top_logprobs, sampled.ranks)
            self._sampled = Sampled(sampled.token_ids, *(None if tensor is None else _to_host(tensor) for tensor in more))
        clock.end(marks)

    def wait(self) -> StepResult:
        """Block until the step has run.  A prefill step that reached no newest token has no tokens."""
        self._clock.wait(self._marks)
        sampled = self._sampled
        if sampled is None:
            return StepResult([], [])
        return StepResult(sampled.token_ids.tolist(), _logprobs_of(sampled, self.batch.requests))

    def read_time(self) -> StepTime:
        """How long the device worked at the step, and was idle before.  After `wait`, once a step, in their order."""
        return self._clock.read(self._marks)


class ModelRunner:
    """Owns the persistent tensors of one engine: model, K/V pool, decode inputs, graphs and sampler."""

    def __init__(
        self, model: Model, spec: ModelSpec, pool: KVPool, device: torch.device, max_num_seqs: int, max_model_len: int, use_graphs: bool
    ) -> None:
        self.model = model
        self.spec = spec
        self.pool = pool
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.axes = 2 if spec.rotary == "2d" else 1
        max_blocks = -(-(spec.num_soft_tokens + max_model_len) // pool.block_size)
        more_programs = functools.partial(num_more_programs, num_heads=spec.num_heads, key_bytes=pool.blocks.itemsize)
        self.inputs = DecodeInputs(max_num_seqs, max_blocks, pool.block_size, device, spec.num_soft_tokens, more_programs)
        self.sampler = Sampler(spec, max_num_seqs, device)
        self.graphs: DecodeGraphs | None = None
        self.prompt_graphs: PromptGraphs | None = None
        if use_graphs and self.on_gpu:
            memory = GraphMemory.new()
            self.graphs = DecodeGraphs(self._decode, max_num_seqs, memory)
            blocks = max(max_blocks, -(-MOST_TOKENS // pool.block_size))
            self.prompt_graphs = PromptGraphs(self._prompt, max_num_seqs, blocks, self.axes, device, memory)
        self.clock = StepClock(EventMarker() if self.on_gpu else HostMarker())

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepHandle:
        """Launch one step.  On a GPU this returns before the step has run."""
        if batch.block_copies:
            self.pool.copy_blocks(batch.block_copies)
        logits, marks = self._prefill(batch) if batch.is_prefill else self._logits(batch.requests)
        if logits is None:
            return StepHandle(batch, None, self.clock, marks)
        self.clock.begin_sampling(marks)
        sampled = self.sampler.sample(logits, batch.requests)
        for_host = self.inputs.keep(sampled.token_ids)
        return StepHandle(batch, dataclasses.replace(sampled, token_ids=for_host), self.clock, marks)

    @torch.inference_mode()
    def warm_up(self, sizes: list[int], dtype: torch.dtype) -> None:
        """Compile the kernels, and capture the graphs of these decode sizes and of lone prompts, ahead of the first request.

        dtype: the model's.  On a CPU there is nothing to do.
        """
        if not self.on_gpu:
            return
        if self.graphs is not None and self.prompt_graphs is not None:
            for size in sizes:
                self.graphs.prepare(self.graphs.size_for(size))
            self.inputs.fill([], min(2, self.inputs.max_num_seqs))
            self.prompt_graphs.capture_lone_prompts(self._begins_whole)
        self.sampler.warm_up(self.inputs.max_num_seqs, dtype)
        self.inputs.keep(torch.zeros(1, dtype=torch.int64, device=self.device))

    @torch.inference_mode()
    def prepare_ahead(self) -> bool:
        """Capture one more graph that a step may need, while no step is under way; False where none is left."""
        if self.graphs is None or self.prompt_graphs is None:
            return False
        if size := next(filter(self.graphs.lacks, self.graphs.sizes), None):
            self.inputs.fill([], size)
            self.graphs.prepare(size)
            return True
        if shape := next(filter(self.prompt_graphs.lacks, self.prompt_graphs.shapes(self._begins_whole)), None):
            self.inputs.fill([], shape.sequences)
            self.prompt_graphs.prepare_ahead(shape)
            return True
        return False

    @property
    def _begins_whole(self) -> bool:
        """Whether a new prompt's first token has nothing in front of it: no soft tokens."""
        return self.spec.num_soft_tokens == 0

    def _prefill(self, batch: ScheduledBatch) -> tuple[torch.Tensor | None, StepMarks]:
        arrays = prefill_arrays(batch.chunks, self.pool.block_size, self.axes, self.spec.num_soft_tokens)
        count = len(batch.requests)
        assert batch.requests == [chunk.request for chunk in batch.chunks[:count]]  # so their newest tokens are the first last_rows
        if self.prompt_graphs is not None and (shape := self.prompt_graphs.shape_for(arrays, count)):
            return self._replay_prompt(self.prompt_graphs, shape, arrays, batch.requests)
        inputs = prefill_inputs(arrays, self.model.rotary, self.device)
        host = self.inputs.fill(batch.requests, count) if count else None
        marks = self.clock.begin()
        newest = None
        if host is not None:
            _, metadata = self.inputs.unpack(count, self.model.rotary, self.axes, host)
            newest = NewestTokens(inputs.last_rows[:count], metadata)
        hidden = self.model.prefill(inputs.token_ids, inputs.metadata, self.pool.caches, newest)
        return None if hidden is None else self.model.logits(hidden), marks

    def _replay_prompt(
        self, graphs: PromptGraphs, shape: PromptShape, arrays: PrefillArrays, requests: list[Request]
    ) -> tuple[torch.Tensor, StepMarks]:
        self.inputs.fill(requests, shape.sequences)
        graphs.fill(shape, arrays)
        graphs.prepare(shape)  # before the clock runs, which counts steps and not their recording
        marks = self.clock.begin()
        return graphs.replay(shape)[: len(requests)], marks

    def _prompt(self, shape: PromptShape) -> torch.Tensor:
        assert self.prompt_graphs is not None
        inputs = self.prompt_graphs.unpack(shape, self.model.rotary)
        _, metadata = self.inputs.unpack(shape.sequences, self.model.rotary, self.axes)
        newest = NewestTokens(inputs.last_rows[: shape.sequences], metadata)
        hidden = self.model.prefill(inputs.token_ids, inputs.metadata, self.pool.caches, newest)
        assert hidden is not None
        return self.model.logits(hidden)

    def _logits(self, requests: list[Request]) -> tuple[torch.Tensor, StepMarks]:
        count = len(requests)
        if self.graphs is None:
            host = self.inputs.fill(requests, count)
            marks = self.clock.begin()
            token_ids, metadata = self.inputs.unpack(count, self.model.rotary, self.axes, host)
            return self.model.logits(self.model(token_ids, metadata, self.pool.caches)), marks
        size = self.graphs.size_for(count)
        self.inputs.fill(requests, size)
        self.graphs.prepare(size)  # before the clock runs, as above
        marks = self.clock.begin()
        return self.graphs.replay(size)[:count], marks

    def _decode(self, num_rows: int) -> torch.Tensor:
        token_ids, metadata = self.inputs.unpack(num_rows, self.model.rotary, self.axes)
        return self.model.logits(self.model(token_ids, metadata, self.pool.caches))


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _logprobs_of(sampled: Sampled, requests: list[Request]) -> list[TokenLogprobs | None]:
    if sampled.top_ids is None or sampled.top_logprobs is None or sampled.ranks is None:
        return [None] * len(requests)
    ids, values, ranks = sampled.top_ids.tolist(), sampled.top_logprobs.tolist(), sampled.ranks.tolist()
    result: list[TokenLogprobs | None] = []
    for row, request in enumerate(requests):
        count = request.params.logprobs
        if count is None:
            result.append(None)
            continue
        width = count + 1
        result.append(TokenLogprobs(ids[row][:width], values[row][:width], [ranks[row], *range(1, width)]))
    return result
