"""Whatever is asked of the scheduler, in whatever order: right tokens, one end each, no block lost, nothing left waiting."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmserve.protocol.messages import FinishReason
from glmserve.protocol.sampling_params import SamplingParams
from tests.scheduler.simulation import BOS, GMASK, MASK, Settings, Simulation, expected_answer

MAX_MODEL_LEN = 40
MODERATE = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Arrival:
    """One request and when it comes and, perhaps, is given up, in steps."""

    prompt: list[int]
    params: SamplingParams
    priority: int
    at_step: int
    abort_after: int | None


@st.composite
def prompts(draw: st.DrawFn, attention: str) -> list[int]:
    # few different tokens and lengths, so that identical contexts and shared prefixes happen
    text = draw(
        st.lists(st.sampled_from([1, 2]), min_size=0, max_size=12)
        | st.sampled_from([[3] * 7, [3] * 8, [3] * 9, [3, 3, 4] * 5, [4] * 31, [4] * 35])
    )
    if attention == "causal":
        return text or [1]
    mask = draw(st.sampled_from([[GMASK], [MASK], [MASK, GMASK]]))
    answer = draw(st.just([]) | st.lists(st.sampled_from([5, 6, BOS]), max_size=6))
    return (text + mask + [BOS] + answer)[: MAX_MODEL_LEN - 1]


@st.composite
def arrivals(draw: st.DrawFn, attention: str) -> Arrival:
    min_tokens = draw(st.sampled_from([0, 0, 3]))
    params = SamplingParams(
        max_tokens=draw(st.integers(max(1, min_tokens), 20)),
        min_tokens=min_tokens,
        stop_token_ids=draw(st.just([]) | st.just([7, 8])),
        ignore_eos=draw(st.booleans()),
        seed=draw(st.integers(-6, 30)),
    )
    return Arrival(
        draw(prompts(attention)),
        params,
        draw(st.sampled_from([0, 0, 0, 1, 5])),
        draw(st.integers(0, 25)),
        draw(st.none() | st.integers(0, 20)),
    )


@st.composite
def engines(draw: st.DrawFn) -> Settings:
    block_size = draw(st.sampled_from([1, 3, 4, 16]))
    attention = draw(st.sampled_from(["prefix", "causal"]))
    soft = draw(st.sampled_from([0, 0, 5, 8])) if attention == "prefix" else 0
    smallest = -(-(MAX_MODEL_LEN + soft) // block_size) + -(-soft // block_size)
    return Settings(
        attention=attention,
        num_soft_tokens=soft,
        block_size=block_size,
        num_blocks=smallest + draw(st.sampled_from([0, 0, 1, 3, 8, 100])),
        max_num_seqs=draw(st.sampled_from([1, 2, 3, 8])),
        max_num_batched_tokens=draw(st.sampled_from([5, 16, 64])),
        caching=draw(st.booleans()),
        lag=draw(st.sampled_from([0, 1])),
        run_length=draw(st.sampled_from([1, smallest])),
        max_model_len=MAX_MODEL_LEN,
        batching=draw(st.sampled_from(["continuous", "continuous", "window", "async", "serial"])),
        window=draw(st.sampled_from([0.0, 2.5])),
    )


@MODERATE
@given(st.data())
def test_every_request_ends_once_with_its_own_answer(data: st.DataObject) -> None:
    engine = data.draw(engines())
    plan = data.draw(st.lists(arrivals(engine.attention), min_size=1, max_size=10))
    simulation = Simulation(engine)
    aborted = play(simulation, plan)
    for number, arrival in enumerate(plan):
        tokens, reason = expected_answer(arrival.prompt, arrival.params, engine.max_model_len)
        name = str(number)
        if name in aborted:
            assert simulation.tokens_of(name) == tokens[: len(simulation.tokens_of(name))]
            assert simulation.reasons_of(name) == []
            assert simulation.requests[name].finish_reason == FinishReason.ABORT
        else:
            assert simulation.tokens_of(name) == tokens
            assert simulation.reasons_of(name) == [reason] == [simulation.outputs[name][-1][1]]
    assert simulation.pool.num_free == engine.num_blocks - simulation.num_soft_blocks, "blocks leaked"
    assert simulation.scheduler.num_waiting == 0 and not simulation.scheduler.running


def play(simulation: Simulation, plan: list[Arrival]) -> set[str]:
    """Run a plan to its end; returns the names of the requests given up before they had ended."""
    aborted = set()
    for step in range(50):
        for number, arrival in enumerate(plan):
            name = str(number)
            if arrival.at_step == step:
                simulation.add(name, arrival.prompt, arrival.params, arrival.priority)
            if arrival.abort_after is not None and arrival.at_step + arrival.abort_after == step:
                if simulation.requests[name].finish_reason is None:
                    aborted.add(name)
                simulation.scheduler.abort(name)
                simulation.check_books()
        simulation.step()
    simulation.run()
    return aborted
