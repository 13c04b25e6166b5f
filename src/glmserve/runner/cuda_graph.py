"""Steps recorded as CUDA graphs, one a shape, so that a step is one launch and not a thousand."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch

# Few at the start, the rest when first needed: capturing one takes a fraction of a second.
_STEPS = ((8, 1), (32, 4), (64, 8), (256, 16), (1 << 30, 64))


class GraphMemory(NamedTuple):
    """Where graphs are recorded, and the memory they share.  pool: of torch.cuda.graph_pool_handle()."""

    pool: tuple[int, int]
    stream: torch.cuda.Stream

    @classmethod
    def new(cls) -> GraphMemory:
        """On the current GPU."""
        return cls(torch.cuda.graph_pool_handle(), torch.cuda.Stream())


Shape = TypeVar("Shape", bound=Hashable)

logger = logging.getLogger(__name__)


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes that have a graph; a batch is padded up to the next one."""
    sizes, size = [], 0
    for limit, step in _STEPS:
        while size < min(limit, max_num_seqs):
            size = min(size + step, max_num_seqs)
            sizes.append(size)
    return sizes


class StepGraphs(Generic[Shape]):
    """Captures `run(shape) -> logits` once a shape and replays it.  `memory`: where the graphs take theirs from."""

    def __init__(self, run: Callable[[Shape], torch.Tensor], memory: GraphMemory) -> None:
        self._run = run
        self._graphs: dict[Shape, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._memory = memory
        self._has_room = True

    def prepare(self, shape: Shape) -> None:
        """Capture the step of this shape unless that is done.  The inputs must be in place, since capturing runs it once.

        Where the memory does not suffice, it and those after it are launched kernel by kernel: slower, but served.
        """
        if not self.lacks(shape):
            return
        for cache_is_empty in (False, True):
            try:
                return self.capture(shape)
            except torch.OutOfMemoryError:
                self._has_room = not cache_is_empty
                torch.cuda.empty_cache()
        logger.warning("no memory for another CUDA graph: steps of new shapes are slower from now on. Lower --gpu-memory-utilization.")

    def lacks(self, shape: Shape) -> bool:
        """Whether this shape has no graph and may get one."""
        return shape not in self._graphs and self._has_room

    def replay(self, shape: Shape) -> torch.Tensor:
        """Run the step; the logits are good until the next replay of any graph of this memory."""
        self.prepare(shape)
        if shape not in self._graphs:
            return self._run(shape)
        graph, logits = self._graphs[shape]
        graph.replay()
        return logits

    def capture(self, shape: Shape) -> None:
        """Record the step of one shape, after a run outside that compiles its kernels.

        torch.cuda.graph would empty torch's caches first, and the next large step would wait for the driver to map its memory again.
        """
        self._run(shape)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection(), torch.cuda.stream(self._memory.stream):
            graph.capture_begin(self._memory.pool)  # type: ignore[arg-type]
            try:
                logits = self._run(shape)
            finally:
                graph.capture_end()
        self._graphs[shape] = (graph, logits)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What is freed while a graph is recorded, as an engine of before with its own graphs, may break the recording."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class DecodeGraphs(StepGraphs[int]):
    """Decode steps by their number of rows."""

    def __init__(self, run: Callable[[int], torch.Tensor], max_num_seqs: int, memory: GraphMemory) -> None:
        super().__init__(run, memory)
        self.sizes = graph_sizes(max_num_seqs)

    def size_for(self, num_rows: int) -> int:
        """The smallest captured size that holds `num_rows`."""
        return next(size for size in self.sizes if size >= num_rows)
