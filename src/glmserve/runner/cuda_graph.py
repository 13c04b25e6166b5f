"""Decode steps recorded as CUDA graphs, one a batch size, so that a step is one launch and not a thousand."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Few at the start, the rest when first needed: capturing one takes a fraction of a second.
_STEPS = ((8, 1), (32, 4), (64, 8), (256, 16), (1 << 30, 64))


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes that have a graph; a batch is padded up to the next one."""
    sizes, size = [], 0
    for limit, step in _STEPS:
        while size < min(limit, max_num_seqs):
            size = min(size + step, max_num_seqs)
            sizes.append(size)
    return sizes


class DecodeGraphs:
    """Captures `run(num_rows) -> logits` once a size and replays it.  All graphs share one memory pool."""

    def __init__(self, run: Callable[[int], torch.Tensor], max_num_seqs: int) -> None:
        self._run = run
        self._sizes = graph_sizes(max_num_seqs)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def size_for(self, num_rows: int) -> int:
        """The smallest captured size that holds `num_rows`."""
        return next(size for size in self._sizes if size >= num_rows)

    def prepare(self, size: int) -> None:
        """Capture the step of this size unless that is done.  The inputs must be in place, since capturing runs it once."""
        if size not in self._graphs:
            self.capture(size)

    def replay(self, size: int) -> torch.Tensor:
        """Run the step; the logits [size, vocab_size] are overwritten by the next replay of this size."""
        self.prepare(size)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits

    def capture(self, size: int) -> None:
        """Record the step of one size, after a run outside that compiles its kernels."""
        self._run(size)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._run(size)
        self._graphs[size] = (graph, logits)
