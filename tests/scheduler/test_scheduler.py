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
    assert [chunk.length for chunk in computed] == [length + 1], "with its <sop>"
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
    assert [chunk.length for batch in simulation.batches for chunk in batch.chunks] == [5, 5]


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
    assert prefills == [[5, 5], [5], [12]], "the last context exceeds the budget, so it goes alone and whole, its <sop> later"


def test_a_causal_prompt_is_split_over_steps_while_others_decode() -> None:
    simulation = Simulation(Settings(attention="causal", max_num_batched_tokens=5))
    simulation.add("short", [1], LONG)
    simulation.step()
    simulation.add("long", [2] * 17, LONG)
    simulation.run()
    kinds = ["prefill" if batch.is_prefill else "decode" for batch in simulation.batches[:9]]
    assert kinds == ["decode", *["prefill", "decode"] * 4], "streams go on between the pieces"
    assert [chunk.length for batch in simulation.batches for chunk in batch.chunks] == [5, 5, 5, 2]


@pytest.mark.parametrize("lag", [0, 1])
def test_preemption_keeps_the_context_border(lag: int) -> None:
    """Two answers outgrow the pool; the younger one is pushed back and recomputed: context and answer in one piece, then goes on."""
    simulation = Simulation(Settings(block_size=2, num_blocks=16, max_model_len=32, lag=lag, caching=False))
    params = SamplingParams(max_tokens=20, ignore_eos=True, seed=3)
    prompts = {"old": prefix_prompt(1, 1, 1), "young": prefix_prompt(2, 2, 2)}
    for name, prompt in prompts.items():
        simulation.add(name, prompt, params)
        simulation.now += 1
    simulation.run()
    assert simulation.requests["young"].num_preemptions >= 1 and simulation.requests["old"].num_preemptions == 0
    assert simulation.scheduler.num_preemptions == simulation.requests["young"].num_preemptions
    prompt, *recomputed = [chunk for batch in simulation.batches for chunk in batch.chunks if chunk.request.request_id == "young"]
    assert (prompt.start, prompt.length) == (0, 5)
    assert len(recomputed) == simulation.requests["young"].num_preemptions
    assert all(chunk.start == 0 and chunk.length > 5 and chunk.request.context_len == 4 for chunk in recomputed)
    for name, prompt in prompts.items():
        assert simulation.tokens_of(name) == expected_answer(prompt, params, 32)[0]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_a_prompt_s_first_token_comes_of_the_step_that_computes_it(attention: str, lag: int) -> None:
    simulation = Simulation(Settings(attention=attention, lag=lag))
    for name in "ab":
        simulation.add(name, prefix_prompt(ord(name) % BOS, 2), SamplingParams(max_tokens=1))
    batch = simulation.step()
    assert batch is not None and [request.request_id for request in batch.requests] == ["a", "b"]
    assert simulation.step() is None, "nothing is left but to read"
    assert [len(simulation.tokens_of(name)) for name in "ab"] == [1, 1]


@pytest.mark.parametrize("budget, pieces", [(4, [4, 4, 1]), (5, [5, 4]), (9, [9]), (3, [4, 3, 2])])
def test_what_follows_a_context_is_split_by_the_budget(budget: int, pieces: list[int]) -> None:
    """A context of four and five known tokens after it, none of which the context sees; the last alone is a decode step's."""
    simulation = Simulation(Settings(max_num_batched_tokens=budget))
    prompt = [*prefix_prompt(1, 2, 3), 5, 6, 7, 8]
    simulation.add("begun", prompt, LONG)
    simulation.run()
    computed = [batch.num_tokens for batch in simulation.batches[: len(pieces)]]
    assert computed == pieces
    assert [bool(batch.requests) for batch in simulation.batches[: len(pieces)]] == [False] * (len(pieces) - 1) + [True]
    assert simulation.batches[2].is_prefill is (budget == 3)
    assert simulation.tokens_of("begun") == expected_answer(prompt, LONG, 64)[0]


def test_whoever_is_cut_off_by_the_budget_samples_nothing_yet() -> None:
    simulation = Simulation(Settings(attention="causal", max_num_batched_tokens=8))
    simulation.add("whole", [1] * 5, LONG)
    simulation.add("cut", [2] * 5, LONG)
    batch = simulation.step()
    assert batch is not None and [chunk.length for chunk in batch.chunks] == [5, 3]
    assert [request.request_id for request in batch.requests] == ["whole"]
    simulation.run()
    assert all(
        simulation.tokens_of(name) == expected_answer(prompt, LONG, 64)[0] for name, prompt in (("whole", [1] * 5), ("cut", [2] * 5))
    )


@pytest.mark.parametrize("lag", [0, 1])
def test_a_prompt_that_is_taken_back_out_of_a_step_has_sampled_nothing(lag: int) -> None:
    """Its last piece is planned, then an urgent request needs its row: the plan is undone, also what it would have sampled."""
    simulation = Simulation(Settings(attention="causal", max_num_seqs=1, max_num_batched_tokens=16, lag=lag))
    simulation.add("background", [1] * 20, LONG, priority=1)
    simulation.step()
    simulation.add("urgent", [2] * 3, SamplingParams(max_tokens=2, ignore_eos=True))
    batch = simulation.step()
    assert batch is not None and [request.request_id for request in batch.requests] == ["urgent"]
    assert simulation.requests["background"].num_in_flight == 0
    simulation.run()
    assert simulation.tokens_of("background") == expected_answer([1] * 20, LONG, 64)[0]


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
        if not simulation.reasons_of("urgent"):
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


@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_a_place_is_taken_while_its_last_token_is_on_its_way(attention: str) -> None:
    simulation = Simulation(Settings(attention=attention, lag=1, max_num_seqs=1, caching=False))
    for name, max_tokens in (("a", 3), ("b", 1), ("c", 2)):
        simulation.add(name, prefix_prompt(1, 2), SamplingParams(max_tokens=max_tokens, ignore_eos=True))
    kinds = [batch.is_prefill for _ in range(6) if (batch := simulation.step()) is not None]
    assert kinds == [True, False, False, True, True, False], "no step without work"
    assert simulation.scheduler.num_waiting == 0 and len(simulation.scheduler.running) == 1
    simulation.run()
    assert [len(simulation.tokens_of(name)) for name in "abc"] == [3, 1, 2]


def test_an_ending_requests_blocks_are_taken_before_anyone_is_pushed_back() -> None:
    simulation = Simulation(Settings(lag=1, num_blocks=3, caching=False))
    simulation.add("ends", prefix_prompt(1, 2), SamplingParams(max_tokens=2, ignore_eos=True))
    simulation.add("grows", prefix_prompt(1), SamplingParams(max_tokens=6, ignore_eos=True))
    simulation.run()
    assert simulation.scheduler.num_preemptions == 0
    assert [len(simulation.tokens_of(name)) for name in ("ends", "grows")] == [2, 6]


def test_a_request_that_gave_its_place_away_can_still_be_given_up() -> None:
    simulation = Simulation(Settings(lag=1, max_num_seqs=1))
    simulation.add("a", prefix_prompt(1), SamplingParams(max_tokens=1, ignore_eos=True))
    simulation.add("b", prefix_prompt(2), SamplingParams(max_tokens=2, ignore_eos=True))
    for _ in range(2):
        simulation.step()
    simulation.scheduler.abort("b")
    simulation.add("c", prefix_prompt(3), SamplingParams(max_tokens=1, ignore_eos=True))
    simulation.run()
    assert simulation.reasons_of("a") == [FinishReason.LENGTH] and simulation.reasons_of("b") == []
    assert len(simulation.tokens_of("c")) == 1 and simulation.scheduler.num_waiting == 0


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
