"""Draws the conversations of the next passes in other processes while the device trains on this one.

Fork, not spawn: the poems are read once and shared.  So it must be made before CUDA is touched.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np

from training.packing import Rows, draw_rows
from training.poems import Library, Poem
from training.vocabulary import Vocabulary

_shared: dict[str, object] = {}  # what the forked processes inherit


class Feed:
    """`rows(epoch)` gives all rows of a pass, the same for the same seed and number of workers."""

    def __init__(self, poems: list[Poem], vocabulary: Vocabulary, workers: int, seed: int) -> None:
        _shared.update(poems=poems, library=Library(poems), vocabulary=vocabulary)
        self._workers, self._seed = workers, seed
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
        self._coming: dict[int, list[Future[Rows]]] = {}
        self._order(0)

    def rows(self, epoch: int) -> Rows:
        """Waits for pass `epoch`, and has the next one begun."""
        self._order(epoch)
        parts = [future.result() for future in self._coming.pop(epoch)]
        self._order(epoch + 1)
        return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "start", "border")))

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown(cancel_futures=True)

    def _order(self, epoch: int) -> None:
        if epoch not in self._coming:
            seeds = [self._seed * 1_000_000 + epoch * 1000 + part for part in range(self._workers)]
            self._coming[epoch] = [self._pool.submit(_draw, seed, part, self._workers) for part, seed in enumerate(seeds)]


def _draw(seed: int, part: int, parts: int) -> Rows:
    poems, library, vocabulary = _shared["poems"], _shared["library"], _shared["vocabulary"]
    assert isinstance(poems, list) and isinstance(library, Library) and isinstance(vocabulary, Vocabulary)
    return draw_rows(seed, poems[part::parts], library, vocabulary)
