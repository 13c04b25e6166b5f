"""What a user of a busy server notices: who goes first, what is reused, when an answer ends."""

from __future__ import annotations

import pytest

from glmserve.protocol.errors import InvalidRequestError
from glmserve.protocol.messages import FinishReason
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.scheduler.request import context_border
from tests.scheduler.simulation import BOS, EOS, GMASK, MASK, Settings, Simulation, expected_answer, spec_of

LONG = SamplingParams(max_tokens=12, ignore_eos=True, seed=1)


def prefix_prompt(*text: int) -> list[int]:
    return [*text, GMASK, BOS]


def order_of_first_tokens(simulation: Simulation) -> list[str]:
    order: list[str] = []
    while simulation.scheduler.requests:
        simulation.step()
        order += [name for name, output in simulation.outputs.items() if output and name not in order]
    return order


# --- identical contexts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("length", [3, 7, 8, 9])
def test_identical_contexts_are_computed_once(length: int, lag: int) -> None:
    simulation = Simulation(Settings(lag=lag, block_size=4))
    prompt = prefix_prompt(*[1] * (length - 1))
    for number in range(4):
        simulation.add(str(number), prompt, SamplingParams(max_tokens=6, ignore_eos=True, seed=number))
    simulation.run()
    computed = [chunk for batch in simulation.batches for chunk in batch.chunks]
    assert [chunk.length for chunk in computed] == [length]
    assert sorted(request.num_cached_tokens for request in simulation.requests.values()) == [0, length, length, length]
    simulation.add("later", prompt, LONG)
    simulation.run()
    assert simulation.requests["later"].num_cached_tokens == length, "regenerate finds it too"
    assert simulation.scheduler.kv_cache.num_hit_tokens == 4 * length


def test_a_context_that_only_begins_alike_is_computed() -> None:
    simulation = Simulation(Settings(block_size=2))
    simulation.add("a", prefix_prompt(1, 1, 1, 1, 1), LONG)
    simulation.run()
    simulation.add("b", prefix_prompt(1, 1, 1, 1, 2), LONG)
    simulation.run()
    assert simulation.requests["b"].num_cached_tokens == 0


def test_without_caching_nothing_is_reused() -> None:
    simulation = Simulation(Settings(caching=False))
    for number in range(2):
        simulation.add(str(number), prefix_prompt(1, 2, 3), LONG)
    simulation.run()
    assert [chunk.length for batch in simulation.batches for chunk in batch.chunks] == [4, 4]


def test_causal_prompts_share_their_full_blocks_but_the_newest_token_is_computed() -> None:
    simulation = Simulation(Settings(attention="causal", block_size=4))
    simulation.add("a", [1] * 8, LONG)
    simulation.run()
    simulation.add("same", [1] * 8, LONG)
    simulation.add("longer", [1] * 8 + [2], LONG)
    simulation.add("other", [2] + [1] * 8, LONG)
    simulation.run()
    assert {name: request.num_cached_tokens for name, request in simulation.requests.items()} == {
        "a": 0,
        "same": 4,
        "longer": 8,
        "other": 0,
    }


def test_a_full_context_cached_in_the_smallest_pool_can_be_asked_again() -> None:
    """Copying its part-filled last block would need one block more than there is."""
    simulation = Simulation(Settings(block_size=4, num_blocks=10, max_model_len=40))
    for name in ("first", "again"):
        simulation.add(name, prefix_prompt(*[1] * 34), LONG)
        simulation.run(max_steps=50)
        assert simulation.reasons_of(name) == [FinishReason.LENGTH]


# --- one step's work --------------------------------------------------------------------------------------------------------------


def test_several_prompts_share_a_step_and_no_context_is_split() -> None:
    simulation = Simulation(Settings(max_num_batched_tokens=10))
    for number, length in enumerate((4, 4, 4, 12)):
        simulation.add(str(number), prefix_prompt(*[number + 1] * (length - 1)), LONG)
    simulation.run()
    prefills = [[chunk.length for chunk in batch.chunks] for batch in simulation.batches if batch.is_prefill]
    assert prefills == [[4, 4], [4], [12]], "the last exceeds the budget, so it goes alone and whole"


def test_a_causal_prompt_is_split_over_steps_while_others_decode() -> None:
    simulation = Simulation(Settings(attention="causal", max_num_batched_tokens=5))
    simulation.add("short", [1], LONG)
    simulation.step()
    simulation.add("long", [2] * 17, LONG)
    simulation.run()
    kinds = ["prefill" if batch.is_prefill else "decode" for batch in simulation.batches[:9]]
    assert kinds == ["decode", *["prefill", "decode"] * 4], "streams go on between the pieces"
    assert [chunk.length for batch in simulation.batches for chunk in batch.chunks] == [5, 5, 5, 1]


@pytest.mark.parametrize("lag", [0, 1])
def test_preemption_keeps_the_context_border(lag: int) -> None:
    """Two answers outgrow the pool; the younger one is pushed back and recomputed: context as a context, answer causally."""
    simulation = Simulation(Settings(block_size=2, num_blocks=16, max_model_len=32, lag=lag, caching=False))
    params = SamplingParams(max_tokens=20, ignore_eos=True, seed=3)
    prompts = {"old": prefix_prompt(1, 1, 1), "young": prefix_prompt(2, 2, 2)}
    for name, prompt in prompts.items():
        simulation.add(name, prompt, params)
        simulation.now += 1
    simulation.run()
    assert simulation.requests["young"].num_preemptions >= 1 and simulation.requests["old"].num_preemptions == 0
    assert simulation.scheduler.num_preemptions == simulation.requests["young"].num_preemptions
    recomputed = [chunk for batch in simulation.batches for chunk in batch.chunks if chunk.request.request_id == "young"]
    assert [(chunk.start, chunk.length) for chunk in recomputed[:2]] == [(0, 4), (0, 4)]
    assert recomputed[2].start == 4 and recomputed[2].length > 1
    for name, prompt in prompts.items():
        assert simulation.tokens_of(name) == expected_answer(prompt, params, 32)[0]


# --- order ------------------------------------------------------------------------------------------------------------------------


def test_first_come_first_served_within_a_class() -> None:
    simulation = Simulation(Settings(max_num_seqs=1))
    for number in range(4):
        simulation.add(str(number), prefix_prompt(number), SamplingParams(max_tokens=2), arrival=float(number))
    assert order_of_first_tokens(simulation) == ["0", "1", "2", "3"]


def test_a_better_class_goes_first_until_the_worse_has_waited_long_enough() -> None:
    simulation = Simulation(Settings(max_num_seqs=1))  # aging: 10 seconds a class
    one = SamplingParams(max_tokens=1)
    simulation.add("background, old", prefix_prompt(1), one, priority=1, arrival=0.0)
    simulation.add("urgent, soon after", prefix_prompt(2), one, priority=0, arrival=9.0)
    simulation.add("urgent, late", prefix_prompt(3), one, priority=0, arrival=11.0)
    assert order_of_first_tokens(simulation) == ["urgent, soon after", "background, old", "urgent, late"]


def test_a_worse_class_never_starves_under_a_flood() -> None:
    simulation = Simulation(Settings(max_num_seqs=1))
    simulation.add("patient", prefix_prompt(1), SamplingParams(max_tokens=1), priority=3)
    for number in range(200):
        simulation.add(f"flood {number}", prefix_prompt(2), SamplingParams(max_tokens=2, ignore_eos=True))
        simulation.step()
        simulation.step()
        if simulation.outputs["patient"]:
            break
    assert 30 <= simulation.now <= 120, "three classes of ten seconds, and its turn in the queue"


@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_an_urgent_request_takes_the_row_of_a_background_one(attention: str) -> None:
    simulation = Simulation(Settings(attention=attention, max_num_seqs=1, max_num_batched_tokens=4))
    simulation.add("background", [1] * 12 + [GMASK, BOS], LONG, priority=1)
    simulation.step()  # a causal prompt is still being computed here, a context is done
    simulation.add("urgent", prefix_prompt(2), SamplingParams(max_tokens=1))
    for _ in range(4):
        simulation.step()
    assert simulation.reasons_of("urgent") and len(simulation.tokens_of("background")) <= 1
    simulation.run()
    assert simulation.requests["background"].num_preemptions == 1
    assert simulation.tokens_of("background") == expected_answer([1] * 12 + [GMASK, BOS], LONG, 64)[0]


def test_a_long_generation_does_not_block_short_ones() -> None:
    simulation = Simulation(Settings())
    simulation.add("long", prefix_prompt(1), SamplingParams(max_tokens=50, ignore_eos=True))
    for _ in range(5):
        simulation.step()
    simulation.add("short", prefix_prompt(2), SamplingParams(max_tokens=2, ignore_eos=True))
    for _ in range(3):
        simulation.step()
    assert simulation.reasons_of("short") == [FinishReason.LENGTH]
    assert not simulation.reasons_of("long")


# --- ends -------------------------------------------------------------------------------------------------------------------------


def prompt_that_ends_with_eos() -> tuple[list[int], list[int]]:
    """A prompt whose answer has its end token at the fourth place or later, and the answer."""
    for first in range(BOS):
        for second in range(BOS):
            prompt = prefix_prompt(first, second)
            answer, reason = expected_answer(prompt, SamplingParams(max_tokens=30), 64)
            if reason == FinishReason.STOP and 4 <= len(answer) <= 20:
                return prompt, answer
    raise AssertionError("the pretended model never ends")


@pytest.mark.parametrize("lag", [0, 1])
def test_how_an_answer_ends(lag: int) -> None:
    prompt, answer = prompt_that_ends_with_eos()
    simulation = Simulation(Settings(lag=lag))
    simulation.add("end token", prompt, SamplingParams(max_tokens=30))
    simulation.add("ignored", prompt, SamplingParams(max_tokens=len(answer) + 2, ignore_eos=True))
    simulation.add("stop token", prompt, SamplingParams(max_tokens=30, stop_token_ids=[answer[1]]))
    simulation.add("length", prompt, SamplingParams(max_tokens=3))
    simulation.add("at least", prompt, SamplingParams(max_tokens=30, min_tokens=len(answer) + 3))
    simulation.run()
    assert (simulation.tokens_of("end token"), simulation.reasons_of("end token")) == (answer, [FinishReason.STOP])
    assert answer[-1] == EOS
    assert simulation.reasons_of("ignored") == [FinishReason.LENGTH] and len(simulation.tokens_of("ignored")) == len(answer) + 2
    assert simulation.tokens_of("stop token") == answer[: answer.index(answer[1]) + 1]
    assert simulation.reasons_of("stop token") == [FinishReason.STOP]
    assert (simulation.tokens_of("length"), simulation.reasons_of("length")) == (answer[:3], [FinishReason.LENGTH])
    assert len(simulation.tokens_of("at least")) >= len(answer) + 3


def test_the_answer_ends_where_the_model_does() -> None:
    simulation = Simulation(Settings(max_model_len=20))
    simulation.add("full", prefix_prompt(*[1] * 10), SamplingParams(max_tokens=None, ignore_eos=True))
    simulation.run()
    assert len(simulation.tokens_of("full")) == 8 and simulation.reasons_of("full") == [FinishReason.LENGTH]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("after", range(4))
def test_abort_frees_everything_at_once(lag: int, after: int) -> None:
    simulation = Simulation(Settings(lag=lag))
    simulation.add("gone", prefix_prompt(1), LONG)
    for _ in range(after):
        simulation.step()
    simulation.scheduler.abort("gone")
    simulation.scheduler.abort("gone")
    simulation.scheduler.abort("never was")
    assert simulation.pool.num_free == 64 and not simulation.scheduler.requests
    simulation.run()
    simulation.step()
    assert simulation.reasons_of("gone") == []


# --- where a context ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token_ids, border",
    [
        ([1, 2, GMASK, BOS], (3, 2)),
        ([GMASK, 1, GMASK, BOS], (3, 0)),  # the first [gMASK]
        ([MASK, 1, GMASK, BOS], (3, 2)),  # [gMASK] before [MASK], wherever it stands
        ([1, MASK, 2, BOS], (3, 1)),
        ([1, GMASK, BOS, 2, BOS], (2, 1)),  # the first <sop>
        ([BOS, GMASK], (0, 1)),
    ],
)
def test_context_border(token_ids: list[int], border: tuple[int, int]) -> None:
    assert context_border(token_ids, spec_of("prefix")) == border
    assert context_border(token_ids, spec_of("causal")) == (0, -1)


@pytest.mark.parametrize("token_ids, missing", [([1, GMASK], "<sop>"), ([1, BOS], "gMASK")])
def test_a_prompt_that_is_not_chatglms_says_what_it_lacks(token_ids: list[int], missing: str) -> None:
    with pytest.raises(InvalidRequestError, match=missing):
        context_border(token_ids, spec_of("prefix"))
