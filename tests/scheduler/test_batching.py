"""What each `--batching` mode lets run together."""

from __future__ import annotations

import pytest

from glmserve.protocol.messages import FinishReason
from glmserve.protocol.sampling_params import SamplingParams
from tests.scheduler.simulation import BOS, GMASK, Settings, Simulation, expected_answer


def tokens(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, ignore_eos=True, seed=1)


def add(simulation: Simulation, *names: str, count: int = 4) -> None:
    for name in names:
        simulation.add(name, [ord(name[0]) % BOS, len(name), GMASK, BOS], tokens(count))


def members(simulation: Simulation) -> list[set[str]]:
    """Who is in each step."""
    return [{request.request_id for request in batch.requests or [chunk.request for chunk in batch.chunks]} for batch in simulation.batches]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("batching", ["serial", "async"])
def test_one_after_the_other_in_the_order_of_arrival(batching: str, lag: int) -> None:
    simulation = Simulation(Settings(batching=batching, lag=lag))
    add(simulation, "a", "b", "c")
    simulation.run()
    assert members(simulation) == [{name} for name in "abc" for _ in range(4)], "four tokens each, the first with its prompt"


def test_async_leaves_no_gap_and_serial_waits_for_the_end() -> None:
    """With tokens read one step late, as on a GPU: serial waits for the last one."""
    steps = {}
    for batching in ("serial", "async"):
        simulation = Simulation(Settings(batching=batching, lag=1))
        add(simulation, "a", "b")
        simulation.run()
        steps[batching] = simulation.now
    assert steps["async"] == 9, "eight steps, and one to read the last token"
    assert steps["serial"] == 10


def test_a_window_gathers_from_the_first_arrival_and_then_nobody_joins() -> None:
    simulation = Simulation(Settings(batching="window", window=2.5, lag=0))
    add(simulation, "a")
    assert simulation.step() is None and simulation.scheduler.held_back
    add(simulation, "b")
    assert simulation.step() is None
    assert simulation.step() is not None, "2.5 seconds after a came"
    assert not simulation.scheduler.held_back
    add(simulation, "late", "later")
    simulation.run()
    assert members(simulation) == [{"a", "b"}] * 4 + [{"late", "later"}] * 4


def test_a_window_that_is_full_does_not_wait() -> None:
    simulation = Simulation(Settings(batching="window", window=1000.0, max_num_seqs=2))
    add(simulation, "a", "b")
    assert simulation.step() is not None
    add(simulation, "c", "d", "e")
    for _ in range(15):  # at the end e is alone, and its window lasts
        simulation.step()
    assert members(simulation) == [{"a", "b"}] * 4 + [{"c", "d"}] * 4
    simulation.now += 1000
    simulation.run(max_steps=6)
    assert simulation.reasons_of("e") == [FinishReason.LENGTH]


def test_a_batch_runs_until_its_longest_answer_is_done() -> None:
    simulation = Simulation(Settings(batching="window", window=0.0))
    add(simulation, "short", count=1)
    add(simulation, "x long", count=8)
    simulation.step()
    add(simulation, "next")
    simulation.run()
    assert members(simulation) == [{"short", "x long"}] + [{"x long"}] * 7 + [{"next"}] * 4
    assert simulation.reasons_of("short") == [FinishReason.LENGTH]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_newcomer_takes_no_room_from_who_was_pushed_back(lag: int) -> None:
    """Two answers outgrow the pool; the younger one is computed again when the older one is done, in the next batch."""
    simulation = Simulation(Settings(batching="window", window=0.0, block_size=2, num_blocks=16, max_model_len=32, lag=lag, caching=False))
    for name in ("old", "young"):
        simulation.add(name, [1, 2, GMASK, BOS], tokens(20))
        simulation.now += 1
    simulation.step()
    add(simulation, "newcomer")
    simulation.run()
    assert sum(request.num_preemptions for request in simulation.requests.values()) >= 1
    assert not any({"old", "newcomer"} <= step for step in members(simulation))
    assert simulation.tokens_of("young") == expected_answer([1, 2, GMASK, BOS], tokens(20), 32)[0]


def test_a_better_class_that_comes_late_waits_for_the_batch_and_blocks_nobody() -> None:
    """The newcomer stands first in the queue but may not join; the batch's own, whom it hides, come with the next one."""
    simulation = Simulation(Settings(batching="window", window=0.0, num_blocks=10, max_model_len=40, caching=False))
    for name in ("a", "b"):
        simulation.add(name, [1, 2, GMASK, BOS], tokens(30), priority=1)
    simulation.step()
    simulation.add("urgent", [3, GMASK, BOS], tokens(2), priority=0)
    simulation.run(max_steps=200)
    assert all(simulation.reasons_of(name) == [FinishReason.LENGTH] for name in ("a", "b", "urgent"))


@pytest.mark.parametrize("batching", ["serial", "async", "window"])
def test_given_up_requests_make_way(batching: str) -> None:
    simulation = Simulation(Settings(batching=batching, window=0.0))
    add(simulation, "a", count=50)
    simulation.step()
    add(simulation, "b", "c")
    simulation.step()
    simulation.scheduler.abort("b")
    simulation.scheduler.abort("a")
    simulation.run(max_steps=6)
    assert simulation.reasons_of("c") == [FinishReason.LENGTH]
