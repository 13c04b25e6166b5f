"""Each way to serve that `glmserve bench ladder` compares gives the same tokens: batching modes, plain and fused kernels, graphs or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.golden import generate, make_engine, read_cases


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("kernels", ["fused", "plain"])
@pytest.mark.parametrize("batching", ["serial", "async", "window", "continuous"])
def test_tokens_are_the_originals(shared: Path, batching: str, kernels: str, eager: bool) -> None:
    folder = shared / "golden/v1/small"
    cases = read_cases(folder)
    engine = make_engine(
        folder, device="cuda", dtype="float32", num_kv_blocks=2000, batching=batching, kernels=kernels, enforce_eager=eager
    )
    assert generate(engine, cases) == {case.name: case.greedy_tokens for case in cases}
    most_together = max((size for size, count in enumerate(engine.stats().decode_batch_size.counts) if count), default=0)
    assert (most_together == 0) == (batching in ("serial", "async")), "one request a step, or several"
