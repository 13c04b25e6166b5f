"""The engine remembers what a request waited for, and how long it was pushed back."""

from __future__ import annotations

import pytest

from glmserve.protocol.messages import WaitCause
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.scheduler.batching import Mode
from tests.scheduler.simulation import BOS, GMASK, Settings, Simulation

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


def prompt(seed: int, length: int = 8) -> list[int]:
    return [*((seed + index) % 20 for index in range(length - 2)), GMASK, BOS]


@pytest.mark.parametrize(
    "settings, cause, num_ahead",
    [
        (Settings(num_blocks=2, block_size=16, caching=False), WaitCause.KV_FULL, 2),
        (Settings(max_num_seqs=2, caching=False), WaitCause.BATCH_FULL, 2),
        (Settings(caching=False), WaitCause.NONE, 0),
        (Settings(caching=False, batching="async"), WaitCause.BATCHING, 1),
    ],
)
def test_why_the_third_request_waited(settings: Settings, cause: WaitCause, num_ahead: int) -> None:
    simulation = Simulation(settings)
    for seed in range(3):
        request = simulation.add(str(seed), prompt(seed), GREEDY)
    simulation.run()
    assert (request.wait.cause, request.wait.num_ahead) == (cause, num_ahead)


def test_what_happened_before_it_came_is_not_its_cause() -> None:
    simulation = Simulation(Settings(max_num_seqs=1, caching=False))
    for seed in range(2):
        simulation.add(str(seed), prompt(seed), GREEDY)
    simulation.run()
    late = simulation.add("late", prompt(5), GREEDY)
    simulation.run()
    assert late.wait.cause is WaitCause.NONE


def test_who_held_most_is_named() -> None:
    simulation = Simulation(Settings(num_blocks=8, caching=False))
    simulation.add("small", prompt(1, 8), GREEDY)
    simulation.add("large", prompt(2, 20), GREEDY)
    waiting = simulation.add("waiting", prompt(3, 16), GREEDY)
    simulation.run()
    assert waiting.wait == (WaitCause.KV_FULL, 2, "large")


@pytest.mark.parametrize("mode", ["continuous", "window"])
def test_time_spent_pushed_back_is_counted(mode: Mode) -> None:
    simulation = Simulation(Settings(num_blocks=7, caching=False, batching=mode))
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    requests = [simulation.add(str(seed), prompt(seed), params, arrival=seed / 2) for seed in range(2)]
    simulation.run()
    first, second = requests
    assert first.num_preemptions == 0 and first.preempted_seconds == 0
    assert second.num_preemptions > 0 and second.preempted_seconds > 1
