"""A request's tokens do not depend on who shares its batch: 64 requests at random moments against each alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from glmserve.engine.core import EngineCore
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from tests.engine.golden import make_engine


def run(
    engine: EngineCore, prompts: dict[str, list[int]], params: dict[str, SamplingParams], rng: random.Random | None
) -> dict[str, list[int]]:
    """Tokens of all prompts, handed in at random steps, or one after the other without `rng`."""
    waiting, tokens = list(prompts), {name: [] for name in prompts}
    while waiting or engine.has_unfinished_requests():
        if waiting and (rng.random() < 0.8 if rng else not engine.has_unfinished_requests()):
            name = waiting.pop()
            engine.add_request(EngineRequest(name, prompts[name], params[name], time.monotonic()))
        for output in engine.step() if engine.has_unfinished_requests() else []:
            tokens[output.request_id] += output.new_token_ids
    return tokens


@pytest.mark.parametrize("pool_blocks", [4000, 160], ids=["roomy", "preempting"])
def test_random_arrivals_equal_alone(shared: Path, pool_blocks: int) -> None:
    folder = shared / "golden/v1/small"
    engine = make_engine(folder, device="cuda", dtype="float32", num_kv_blocks=pool_blocks, max_num_seqs=40)
    rng = random.Random(7)
    prompts = {str(i): [*(rng.randrange(20, 300) for _ in range(rng.randrange(1, 90))), 311, 314] for i in range(64)}
    params = {
        name: SamplingParams(temperature=rng.choice([0.0, 0.9]), top_k=rng.choice([0, 20]), top_p=0.9, seed=int(name), max_tokens=40,
                             repetition_penalty=rng.choice([1.0, 1.2]), ignore_eos=True)
        for name in prompts
    }  # fmt: skip
    alone = run(engine, prompts, params, None)
    together = run(engine, prompts, params, rng)
    assert together == alone
    assert (engine.stats().num_preemptions > 0) == (pool_blocks == 160)
    assert engine.scheduler.kv_cache.pool.num_free == pool_blocks - 1


def test_what_is_prepared_while_idle_changes_no_token_and_memory_stays(shared: Path) -> None:
    engine = make_engine(shared / "golden/v1/small", device="cuda", dtype="float32", num_kv_blocks=4000, max_num_seqs=40)
    rng = random.Random(3)
    prompts = {str(i): [*(rng.randrange(20, 300) for _ in range(rng.randrange(1, 150))), 311, 314] for i in range(64)}
    params = dict.fromkeys(prompts, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
    alone = run(engine, prompts, params, None)  # leaves rows and contexts behind
    while engine.prepare_ahead():
        pass
    graphs, prompt_graphs = engine.runner.graphs, engine.runner.prompt_graphs
    assert graphs is not None and prompt_graphs is not None
    recorded, reserved = (len(graphs._graphs), len(prompt_graphs._graphs)), list[int]()
    for _ in range(3):
        assert run(engine, prompts, params, rng) == alone
        reserved.append(torch.cuda.memory_reserved())
    assert (len(graphs._graphs), len(prompt_graphs._graphs)) == recorded, "all were there"
    assert reserved[1:] == reserved[:1] * 2
