"""What is sent and when."""

from __future__ import annotations

import itertools
import json
import statistics
from typing import Any

from glmserve.tools.bench.facts import ServerFacts, _with_special_ids
from glmserve.tools.bench.plan import draw_requests, make_plans
from glmserve.tools.bench.settings import ServeBenchConfig


def config(**values: Any) -> ServeBenchConfig:
    return ServeBenchConfig(**values)


def moments(**values: Any) -> list[float]:
    return [request.send_at for request in draw_requests(config(**values))]


def test_the_same_seed_gives_the_same_moments_and_prompts() -> None:
    settings = {"request_rate": 10, "num_prompts": 50, "random_range_ratio": 0.5}
    assert draw_requests(config(seed=1, **settings)) == draw_requests(config(seed=1, **settings))
    assert moments(seed=1, **settings) != moments(seed=2, **settings)
    bodies = []
    for seed in (1, 1, 2):
        plan = make_plans(config(seed=seed, **settings), ServerFacts("m"))[0]
        bodies.append(plan.body(plan.requests[0]))
    assert bodies[0] == bodies[1] != bodies[2]


def test_pauses_are_poissons() -> None:
    sent = moments(request_rate=20, num_prompts=20_000)
    pauses = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert abs(statistics.fmean(pauses) * 20 - 1) < 0.05
    assert abs(statistics.stdev(pauses) * 20 - 1) < 0.05  # an exponential's deviation is its mean


def test_burstiness_changes_the_spread_and_not_the_rate() -> None:
    sent = moments(request_rate=20, num_prompts=20_000, burstiness=4)
    pauses = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert abs(statistics.fmean(pauses) * 20 - 1) < 0.05
    assert abs(statistics.stdev(pauses) * 20 - 0.5) < 0.05


def test_no_rate_sends_all_at_once() -> None:
    assert set(moments(num_prompts=5)) == {0.0}


def test_lengths_are_exact_or_within_their_range() -> None:
    assert {(request.input_len, request.output_len) for request in draw_requests(config(random_input_len=9, random_output_len=5))} == {
        (9, 5)
    }
    lengths = {request.input_len for request in draw_requests(config(random_input_len=100, random_range_ratio=0.2))}
    assert min(lengths) == 80
    assert max(lengths) == 120


def test_processes_share_requests_and_slots() -> None:
    plans = make_plans(config(num_prompts=100, max_concurrency=10, num_workers=4), ServerFacts("m"))
    assert [plan.max_concurrency for plan in plans] == [3, 3, 2, 2]
    assert sorted(request.index for plan in plans for request in plan.requests) == list(range(100))
    assert [len(plan.requests) for plan in plans] == [30, 30, 20, 20]
    assert len(make_plans(config(max_concurrency=2, num_workers=4), ServerFacts("m"))) == 2


def test_a_prompt_has_its_length_with_special_ids_and_draws_from_the_range() -> None:
    facts = ServerFacts("m", suffix_ids=[130001, 130004])
    plan = make_plans(config(random_input_len=64, token_ids="10:20"), facts)[0]
    prompt = json.loads(plan.body(plan.requests[0]))["prompt"]
    assert len(prompt) == 64
    assert prompt[-2:] == [130001, 130004]
    assert set(prompt[:-2]) <= set(range(10, 20))


def test_special_ids_are_found_on_the_side_where_they_stand() -> None:
    assert _with_special_ids(ServerFacts("m"), [1, 2], [7, 1, 2]).suffix_ids == [1, 2]
    assert _with_special_ids(ServerFacts("m"), [1], [1, 7]).prefix_ids == [1]
    assert _with_special_ids(ServerFacts("m"), None, [7]) == ServerFacts("m")
