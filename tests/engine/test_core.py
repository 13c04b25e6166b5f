"""EngineCore.step: what goes in comes out once, on a CPU and in the GPU's rhythm, where ids are read one step late."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from glmserve.engine.core import EngineCore
from glmserve.models.floor import head_values, layer_values
from glmserve.protocol.errors import ContextLengthError, InvalidRequestError
from glmserve.protocol.messages import EngineRequest, FinishReason, RequestOutput, WaitCause
from glmserve.protocol.sampling_params import SamplingParams
from tests.engine.golden import GoldenCase, generate, make_engine
from tests.models.tiny import FIXTURES, tiny_cases

MakeEngine = Callable[..., EngineCore]
MODELS = ["chatglm-tiny", "llama-tiny"]


@pytest.fixture(params=["at once", "one step late"])
def engine_of(request: pytest.FixtureRequest) -> MakeEngine:
    """Engines on the fixture models.  Late: in the rhythm of a GPU."""

    def make(model: str = "chatglm-tiny", **settings: Any) -> EngineCore:
        engine = make_engine(FIXTURES / model, device="cpu", **settings)
        if request.param == "one step late":
            engine.runner.on_gpu = True
        return engine

    return make


def run(engine: EngineCore, max_steps: int = 2000) -> dict[str, list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {}
    for _ in range(max_steps):
        if not engine.has_unfinished_requests():
            return outputs
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    raise AssertionError("the engine does not come to an end")


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.new_token_ids]


def add(engine: EngineCore, name: str, prompt: list[int], priority: int = 0, **params: Any) -> None:
    wanted = SamplingParams(**{"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **params})
    engine.add_request(EngineRequest(name, prompt, wanted, time.monotonic(), priority))


@pytest.mark.parametrize("model", MODELS)
def test_answers_in_a_tight_pool(engine_of: MakeEngine, model: str) -> None:
    cases = tiny_cases(FIXTURES / model)
    engine = engine_of(model, max_model_len=100, block_size=4, num_kv_blocks=31, max_num_batched_tokens=16, max_num_seqs=5)
    for order in (cases, cases[::-1]):
        assert generate(engine, order, ignore_eos=True) == {case.name: case.greedy_tokens for case in cases}
    assert engine.stats().num_preemptions > 0


def test_each_request_ends_once_and_its_last_output_says_how(engine_of: MakeEngine) -> None:
    engine, cases = engine_of(), tiny_cases(FIXTURES / "chatglm-tiny")
    started = time.monotonic()
    for case in cases:
        add(engine, case.name, case.prompt)
    for outputs in run(engine).values():
        assert [output.finish_reason for output in outputs] == [None] * 19 + [FinishReason.LENGTH]
        times = outputs[-1].times
        assert times is not None and all(output.times is None for output in outputs[:-1])
        assert started <= times.arrival <= times.first_scheduled <= times.first_token <= times.finished <= time.monotonic()


def test_stop_tokens_are_told_apart_from_the_model_s_own_end(engine_of: MakeEngine) -> None:
    engine, case = engine_of(), tiny_cases(FIXTURES / "chatglm-tiny")[7]
    assert case.greedy_tokens[2] not in case.greedy_tokens[:2]
    add(engine, "stop token", case.prompt, stop_token_ids=[case.greedy_tokens[2]])
    add(engine, "end token", case.prompt, logit_bias={95: 100.0}, ignore_eos=False)
    outputs = run(engine)
    assert tokens_of(outputs["stop token"]) == case.greedy_tokens[:3]
    assert (outputs["stop token"][-1].finish_reason, outputs["stop token"][-1].stop_token_id) == (FinishReason.STOP, case.greedy_tokens[2])
    assert tokens_of(outputs["end token"]) == [95]
    assert (outputs["end token"][-1].finish_reason, outputs["end token"][-1].stop_token_id) == (FinishReason.STOP, None)


@pytest.mark.parametrize("model", MODELS)
def test_first_tokens_come_of_the_step_that_computes_the_prompts(engine_of: MakeEngine, model: str) -> None:
    engine, cases = engine_of(model), tiny_cases(FIXTURES / model)
    cases = [case for case in cases if len(case.prompt) > 1]
    for case in cases:
        add(engine, case.name, case.prompt, max_tokens=1, logprobs=1)
    outputs = run(engine)
    assert {name: tokens_of(given) for name, given in outputs.items()} == {case.name: case.greedy_tokens[:1] for case in cases}
    assert all(given[0].logprobs for given in outputs.values())
    stats = engine.stats()
    assert (stats.engine_steps, stats.decode_batch_size.sum) == (1, 0)
    assert stats.prompt_tokens == sum(len(case.prompt) for case in cases)
    spent = stats.gpu_time_seconds
    assert spent.prefill > 0 and spent.sampling > 0 and spent.decode == 0


def test_an_answer_that_was_pushed_back_goes_on_in_one_step(engine_of: MakeEngine) -> None:
    """Context and answer so far are computed as one piece, at whose end the next token is sampled."""
    engine, case = engine_of(enable_prefix_caching=False), tiny_cases(FIXTURES / "chatglm-tiny")[3]
    add(engine, "x", case.prompt, repetition_penalty=1.1)
    expected = tokens_of(run(engine)["x"])
    add(engine, "y", case.prompt, repetition_penalty=1.1)
    outputs = [output for _ in range(8) for output in engine.step()]
    engine.scheduler._preempt(engine.scheduler.requests["y"])
    steps = engine.stats().engine_steps
    outputs += run(engine)["y"]
    assert tokens_of(outputs) == expected
    before = len(expected) - (engine.stats().engine_steps - steps)  # each step since then gave a token
    assert before in (7, 8)
    assert engine.stats().prompt_tokens == 3 * len(case.prompt) + before


def random_params(rng: random.Random) -> dict[str, Any]:
    return {
        "temperature": rng.choice([0.0, 0.7, 1.5]),
        "top_k": rng.choice([0, 1, 20]),
        "top_p": rng.choice([1.0, 0.8]),
        "repetition_penalty": rng.choice([1.0, 1.3]),
        "presence_penalty": rng.choice([0.0, 1.0]),
        "frequency_penalty": rng.choice([0.0, 0.6]),
        "min_tokens": rng.choice([0, 4]),
        "logit_bias": rng.choice([{}, {95: 6.0}]),
        "ignore_eos": rng.random() < 0.5,
        "max_tokens": rng.randint(4, 30),
        "seed": rng.getrandbits(32),
        "priority": rng.choice([0, 0, 1]),
    }


@pytest.mark.parametrize("model", MODELS)
def test_whatever_is_asked_company_order_and_lack_of_room_change_nothing(engine_of: MakeEngine, model: str) -> None:
    """Random parameters, some requests given up on the way; each answer is the one it gives alone in an engine with room."""
    rng, cases = random.Random(4), tiny_cases(FIXTURES / model)
    plan = [(str(number), rng.choice(cases).prompt, random_params(rng)) for number in range(24)]
    roomy = make_engine(FIXTURES / model, device="cpu")
    alone = {}
    for name, prompt, params in plan:
        add(roomy, name, prompt, **params)
        alone |= run(roomy)
    engine = engine_of(model, max_model_len=128, block_size=4, num_kv_blocks=45, max_num_batched_tokens=32, max_num_seqs=6)
    given_up, together = set(), {name: [] for name, _, _ in plan}
    waiting = plan[::-1]
    while waiting or engine.has_unfinished_requests():
        if waiting and rng.random() < 0.5:
            name, prompt, params = waiting.pop()
            add(engine, name, prompt, **params)
        if engine.scheduler.requests and rng.random() < 0.03:
            given_up.add(name := rng.choice(list(engine.scheduler.requests)))
            engine.abort_requests([name, "unknown"])
        for output in engine.step():
            assert output.request_id not in given_up, "reported after it was given up"
            together[output.request_id].append(output)
    assert engine.stats().num_preemptions > 0 and 0 < len(given_up) < 12
    for name, _, _ in plan:
        tokens, expected = tokens_of(together[name]), tokens_of(alone[name])
        if name in given_up:
            assert tokens == expected[: len(tokens)]
        else:
            assert tokens == expected
            reasons = [output.finish_reason for output in together[name] if output.finish_reason]
            assert reasons == [alone[name][-1].finish_reason]
    assert engine.stats().kv_cache_usage_perc == 0.0


def test_logprobs_come_with_their_tokens(engine_of: MakeEngine) -> None:
    engine, cases = engine_of(), tiny_cases(FIXTURES / "chatglm-tiny")
    for number, case in enumerate(cases):
        add(engine, case.name, case.prompt, logprobs=number if number % 2 else None)
    outputs = run(engine)
    for number, case in enumerate(cases):
        for output in outputs[case.name]:
            if number % 2 == 0:
                assert output.logprobs is None
                continue
            [entry] = output.logprobs or []
            assert entry.token_ids[0] == output.new_token_ids[0] == entry.token_ids[1]  # greedy: the sampled one is the best
            assert len(entry.token_ids) == len(entry.logprobs) == len(entry.ranks) == number + 1
            assert entry.ranks == [1, *range(1, number + 1)] and entry.logprobs == sorted(entry.logprobs, reverse=True)


@pytest.mark.parametrize("params", [{}, {"logprobs": 2}])
def test_scores_that_are_not_numbers_end_a_llama_request_with_a_reason(engine_of: MakeEngine, params: dict[str, int]) -> None:
    engine = engine_of("llama-tiny")
    with torch.inference_mode():
        engine.runner.model.norm.weight.fill_(float("nan"))  # type: ignore[attr-defined]
    add(engine, "x", [1, 2, 3], **params)
    [output] = run(engine)["x"]
    assert (output.finish_reason, output.new_token_ids, output.logprobs) == (FinishReason.ERROR, [], None)
    assert output.error is not None and "not numbers" in output.error
    assert engine.stats().kv_cache_usage_perc == 0.0


def test_chatglm_says_token_5_instead(engine_of: MakeEngine) -> None:
    engine = engine_of()
    with torch.inference_mode():
        engine.runner.model.final_layernorm.bias.fill_(float("inf"))  # type: ignore[attr-defined]
    add(engine, "x", [91, 94], max_tokens=3)
    assert tokens_of(run(engine)["x"]) == [5, 5, 5]


def test_an_id_may_come_again(engine_of: MakeEngine) -> None:
    engine, case = engine_of(), tiny_cases(FIXTURES / "chatglm-tiny")[2]
    add(engine, "same", case.prompt)
    with pytest.raises(InvalidRequestError, match="already running"):
        add(engine, "same", case.prompt)
    for _ in range(4):
        engine.step()
    engine.abort_requests(["same"])
    add(engine, "same", case.prompt)
    assert tokens_of(run(engine)["same"]) == case.greedy_tokens


def test_requests_without_a_seed_differ_and_follow_the_engine_s(engine_of: MakeEngine) -> None:
    def answers(seed: int) -> list[list[int]]:
        engine = engine_of(seed=seed)
        for name in "ab":
            add(engine, name, [5, 91, 94], temperature=1.5)
        return [tokens_of(outputs) for outputs in run(engine).values()]

    first = answers(1)
    assert first[0] != first[1]
    assert answers(1) == first and answers(2) != first


@pytest.mark.parametrize(
    "prompt, kind, words",
    [
        ([], InvalidRequestError, "empty"),
        ([1] * 254 + [91, 94], ContextLengthError, "256"),
        ([96, 91, 94], InvalidRequestError, "from 0 to 95"),
        ([5, 6, 7], InvalidRequestError, "<sop>"),
    ],
)
def test_requests_that_can_never_run_are_refused(prompt: list[int], kind: type[Exception], words: str) -> None:
    engine = make_engine(FIXTURES / "chatglm-tiny", device="cpu")
    with pytest.raises(kind, match=words):
        add(engine, "x", prompt)
    assert not engine.has_unfinished_requests()


@pytest.mark.parametrize("params", [{"stop_token_ids": [96]}, {"stop_token_ids": [-1], "min_tokens": 2}, {"logit_bias": {1000: 1.0}}])
def test_token_ids_that_the_model_has_not_are_refused(params: dict[str, Any]) -> None:
    engine = make_engine(FIXTURES / "chatglm-tiny", device="cpu")
    with pytest.raises(InvalidRequestError, match="from 0 to 95"):
        add(engine, "x", [91, 94], **params)


def test_the_counters_add_up(engine_of: MakeEngine) -> None:
    engine, cases = engine_of(block_size=4), tiny_cases(FIXTURES / "chatglm-tiny")
    for number in range(2):
        for case in cases:
            add(engine, f"{number} {case.name}", case.prompt)
    assert engine.stats().num_requests_waiting == 16
    run(engine)
    stats = engine.stats()
    contexts = sum(case.prompt.index(94) for case in cases)
    tails = [len(case.prompt) - case.prompt.index(94) for case in cases]  # <sop>, and the answer that some prompts begin
    assert stats.generation_tokens == 2 * 8 * 20
    assert stats.prefix_cache_queries == 2 * sum(len(case.prompt) for case in cases)
    assert stats.prefix_cache_hits == contexts
    # With its context cached a second request has only what follows to compute; where that is <sop> alone, in a decode step.
    assert stats.prompt_tokens == contexts + sum(tails) + sum(tail for tail in tails if tail > 1)
    assert (stats.num_requests_running, stats.num_requests_waiting, stats.num_preemptions) == (0, 0, 0)
    assert stats.engine_steps >= 20
    assert stats.iteration_tokens_total.sum == stats.prompt_tokens + stats.decode_batch_size.sum
    assert stats.decode_batch_size.sum == stats.generation_tokens - len(tails) - sum(tail > 1 for tail in tails)
    assert sum(stats.iteration_tokens_total.counts) == stats.engine_steps


def test_the_device_s_time_is_all_accounted_for(engine_of: MakeEngine) -> None:
    engine, cases = engine_of(), tiny_cases(FIXTURES / "chatglm-tiny")
    before = engine.stats().gpu_time_seconds
    assert before.idle_no_work > 0 and before.decode == 0
    for case in cases:
        add(engine, case.name, case.prompt)
    run(engine)
    stats, device = engine.stats(), engine.account.device
    parts = msgspec.structs.asdict(stats.gpu_time_seconds)
    assert sum(parts.values()) == pytest.approx(device.until - device.started, abs=1e-9)
    assert time.monotonic() - device.until < 5
    used = {name for name, seconds in parts.items() if seconds}
    assert used == {"prefill", "decode", "sampling", "idle_no_work", "idle_scheduling"}
    without_work = engine.take_without_work()
    assert sum(end - start for start, end in without_work) == pytest.approx(parts["idle_no_work"])


def test_work_is_set_beside_what_the_device_can_do(engine_of: MakeEngine) -> None:
    engine, case = engine_of(), tiny_cases(FIXTURES / "chatglm-tiny")[0]
    add(engine, "x", case.prompt, max_tokens=5)
    run(engine)
    stats, spec, ready = engine.stats(), engine.spec, engine.ready
    kv_bytes, context = 4 * spec.kv_values_per_token, len(case.prompt)
    head = 4 * head_values(spec)
    layers = 4 * layer_values(spec)
    contexts = sum(context + step for step in range(1, 5))
    assert stats.engine_steps == 5, "the first token comes with the prompt"
    assert stats.estimated_read_bytes_per_gpu == pytest.approx(5 * layers + 5 * head + contexts * kv_bytes, rel=1e-6)
    assert stats.estimated_write_bytes_per_gpu == (context + 4) * kv_bytes
    assert stats.estimated_flops_per_gpu >= 2 * 5 * head_values(spec) + 2 * (context + 4) * layer_values(spec)
    assert ready.device_peak_bytes_per_second > 1e8 and ready.device_peak_flops_per_second > 1e8
    assert 0 < stats.model_bandwidth_utilization_perc < 1 and 0 < stats.model_flops_utilization_perc < 1


def test_a_step_with_nothing_to_do_is_harmless(engine_of: MakeEngine) -> None:
    engine = engine_of()
    assert engine.step() == [] and not engine.has_unfinished_requests()
    assert engine.stats().engine_steps == 0


def test_a_case_in_a_batch_of_its_own_twins(engine_of: MakeEngine) -> None:
    engine, case = engine_of(block_size=16), tiny_cases(FIXTURES / "chatglm-tiny")[3]
    twins = [GoldenCase(str(number), case.prompt, case.greedy_tokens, [], {}) for number in range(12)]
    assert set(map(tuple, generate(engine, twins, ignore_eos=True).values())) == {tuple(case.greedy_tokens)}
    assert engine.stats().prompt_tokens == case.prompt.index(94) + 1, "the context was computed once"


@pytest.mark.parametrize("batching", ["serial", "async", "window"])
def test_every_batching_mode_gives_the_same_answers(engine_of: MakeEngine, batching: str) -> None:
    cases = tiny_cases(FIXTURES / "chatglm-tiny")
    engine = engine_of(batching=batching, batching_window=0.0)
    assert generate(engine, cases, ignore_eos=True) == {case.name: case.greedy_tokens for case in cases}
    most = 1 if batching in ("serial", "async") else len(cases)
    counts = engine.stats().decode_batch_size.counts
    assert any(counts) and not any(counts[most:])


def test_gathering_is_put_down_to_scheduling_and_not_to_memory(engine_of: MakeEngine) -> None:
    engine = engine_of(batching="window", batching_window=60.0)
    add(engine, "a", tiny_cases(FIXTURES / "chatglm-tiny")[0].prompt)
    assert [engine.step() for _ in range(3)] == [[], [], []]
    spent = engine.stats().gpu_time_seconds
    assert spent.idle_scheduling > 0 and spent.idle_kv_full == 0


def test_a_request_s_times_say_what_it_waited_for_and_what_held_it_up(engine_of: MakeEngine) -> None:
    engine = engine_of(max_num_seqs=2)
    add(engine, "first", [7, 8, 9, 91, 94], max_tokens=40)
    outputs: dict[str, RequestOutput] = {}
    for step in range(200):
        if step == 6:
            add(engine, "second", [*range(10, 30), 91, 94], max_tokens=10)
            add(engine, "third", [*range(30, 40), 91, 94], max_tokens=2)
        outputs |= {output.request_id: output for output in engine.step() if output.finish_reason}
    first, second, third = (outputs[name].times for name in ("first", "second", "third"))
    assert first is not None and second is not None and third is not None
    assert first.wait_cause is second.wait_cause is WaitCause.NONE
    assert (third.wait_cause, third.num_ahead, third.largest_ahead) == (WaitCause.BATCH_FULL, 2, "second")
    assert first.prefill_stall_tokens == 22 + 12 and first.prefill_stall > 0  # the prompts of the other two
    assert third.prefill_stall_tokens == 0
