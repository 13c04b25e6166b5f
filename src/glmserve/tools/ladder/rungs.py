"""The rungs: how each serves the model, what it adds to the one below, and what the article that the ladder answers reports there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One way to serve.  `flags` are those of `glmserve serve`; `article` is what was reported there, as told, on an A10."""

    number: int
    name: str
    adds: str
    flags: tuple[str, ...]
    article: str = ""
    needs: str = ""  # what the device must be; empty is anything
    together: bool = True  # whether requests are computed together, so that a warm-up needs many of them


_PLAIN = ("--enforce-eager", "--kernels", "plain")
_FUSED = ("--no-enforce-eager", "--kernels", "fused")
_FP8 = ("--quantization", "fp8", "--kv-cache-dtype", "fp8")

RUNGS = {
    rung.number: rung
    for rung in (
        Rung(0, "one at a time", "as the Gradio demo: the next request is begun when the one before is answered",
             ("--batching", "serial", *_PLAIN), "8 req/s, 1.24 s, 25% utilization", together=False),
        Rung(1, "async API", "requests are read, tokenized and queued while the model works; it still runs them one by one",
             ("--batching", "async", *_PLAIN), "26 req/s, 65-75%", together=False),
        Rung(2, "window batches", "requests are gathered for 50 ms and run together; nobody joins until all of them are done",
             ("--batching", "window", *_PLAIN), "0.78 s, 82-88%"),
        Rung(3, "continuous batching", "requests join and leave at every step, with paged K/V",
             ("--batching", "continuous", *_PLAIN), "32 req/s, 0.66 s, >90%"),
        Rung(4, "graphs and fusion", "a step is one launch, and operations between the matrices are fused",
             ("--batching", "continuous", *_FUSED), needs="a GPU"),
        Rung(5, "fp8", "weights and K/V in 8 bits: half the bytes to read",
             ("--batching", "continuous", *_FUSED, *_FP8), needs="a GPU"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Headline:
    """From the first state to the last: factor of requests/s, change of latency and cost as shares, and utilization.

    Utilization: as `Ladder.utilization`.
    """

    requests: float
    latency: float
    cost: float
    utilization: tuple[float | None, float | None]


ARTICLE = Headline(requests=4.0, latency=-0.47, cost=-0.62, utilization=(0.25, 0.90))
