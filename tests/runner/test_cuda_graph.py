"""Which shapes have a graph, and what happens when there is no memory for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glmserve.runner.cuda_graph import DecodeGraphs, graph_sizes

NO_MEMORY: Any = None  # nothing is recorded here


@pytest.mark.parametrize("max_num_seqs", [1, 3, 8, 9, 33, 70, 256, 1000])
def test_every_batch_finds_a_size_that_is_no_larger_than_the_limit(max_num_seqs: int) -> None:
    sizes = graph_sizes(max_num_seqs)
    assert sizes == sorted(set(sizes)) and sizes[-1] == max_num_seqs
    graphs = DecodeGraphs(lambda size: torch.empty(size), max_num_seqs, NO_MEMORY)
    assert all(graphs.size_for(count) >= count for count in range(1, max_num_seqs + 1))


def test_a_step_without_memory_for_its_graph_is_run_all_the_same(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    ran, tried = list[int](), list[int]()

    def run(size: int) -> torch.Tensor:
        ran.append(size)
        return torch.full((size,), float(size))

    def capture(size: int) -> None:
        tried.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory")

    graphs = DecodeGraphs(run, 8, NO_MEMORY)
    monkeypatch.setattr(graphs, "capture", capture)
    assert graphs.replay(2).tolist() == [2.0, 2.0] and graphs.replay(3).tolist() == [3.0, 3.0, 3.0]
    assert ran == [2, 3] and tried == [2, 2], "once more with torch's cache emptied; after that no other shape takes the last memory"
    assert "no memory for another CUDA graph" in caplog.text
