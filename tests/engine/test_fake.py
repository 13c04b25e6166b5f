"""The fake engine's core keeps the rules that a real one keeps."""

from __future__ import annotations

import pytest

from glmserve.config import EngineConfig
from glmserve.engine.fake import FakeCore, FakeOptions
from glmserve.protocol.errors import ContextLengthError, InvalidRequestError
from glmserve.protocol.messages import EngineRequest, FinishReason, RequestOutput
from glmserve.protocol.sampling_params import SamplingParams


def make_core(options: FakeOptions | None = None, max_num_seqs: int = 4, max_model_len: int = 64) -> FakeCore:
    config = EngineConfig(model="fake", max_num_seqs=max_num_seqs, max_model_len=max_model_len)
    return FakeCore(config, options or FakeOptions())


def request(request_id: str, prompt: list[int], params: SamplingParams) -> EngineRequest:
    return EngineRequest(request_id, prompt, params, arrival_time=1.0)


def run(core: FakeCore) -> dict[str, list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {}
    while core.has_unfinished_requests():
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def one(params: SamplingParams, options: FakeOptions | None = None, prompt: list[int] | None = None) -> tuple[list[int], RequestOutput]:
    """(all token ids, last output) of one request run alone."""
    core = make_core(options)
    core.add_request(request("a", prompt or [5, 6, 7], params))
    outputs = run(core)["a"]
    assert all(output.finish_reason is None for output in outputs[:-1])
    return [token_id for output in outputs for token_id in output.new_token_ids], outputs[-1]


def test_it_echoes_the_prompt_until_max_tokens() -> None:
    token_ids, last = one(SamplingParams(max_tokens=5))
    assert token_ids == [5, 6, 7, 5, 6]
    assert last.finish_reason is FinishReason.LENGTH
    assert last.times is not None
    assert last.times.arrival < last.times.first_scheduled <= last.times.first_token <= last.times.finished


def test_the_models_limit_ends_it_too() -> None:
    token_ids, last = one(SamplingParams(max_tokens=None))
    assert len(token_ids) == 64 - 3
    assert last.finish_reason is FinishReason.LENGTH


def test_an_alphabet_takes_the_place_of_the_prompt() -> None:
    assert one(SamplingParams(max_tokens=3), FakeOptions(alphabet=(1, 2)))[0] == [1, 2, 1]


def test_a_stop_token_ends_it_and_is_named() -> None:
    token_ids, last = one(SamplingParams(max_tokens=9, stop_token_ids=[6]))
    assert token_ids == [5, 6]
    assert (last.finish_reason, last.stop_token_id) == (FinishReason.STOP, 6)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(max_tokens=9), [5, 6]),
        (SamplingParams(max_tokens=9, min_tokens=3), [5, 6, 7, 5, 6]),
        (SamplingParams(max_tokens=4, ignore_eos=True), [5, 6, 7, 5]),
    ],
)
def test_the_end_token(params: SamplingParams, expected: list[int]) -> None:
    token_ids, last = one(params, FakeOptions(eos_token_ids=(6,)))
    assert token_ids == expected
    assert last.stop_token_id is None


def test_several_tokens_a_step_stop_at_the_right_one() -> None:
    token_ids, last = one(SamplingParams(max_tokens=5), FakeOptions(tokens_per_step=3))
    assert token_ids == [5, 6, 7, 5, 6]
    assert last.new_token_ids == [5, 6]


def test_logprobs_have_one_entry_a_token_and_the_sampled_one_first() -> None:
    _, last = one(SamplingParams(max_tokens=2, logprobs=3), FakeOptions(tokens_per_step=2))
    assert last.logprobs is not None
    assert [step.token_ids[0] for step in last.logprobs] == last.new_token_ids
    assert all(len(step.token_ids) == len(step.logprobs) == len(step.ranks) == 4 for step in last.logprobs)


def test_no_more_than_max_num_seqs_run_and_all_end() -> None:
    core = make_core(max_num_seqs=2)
    for name in "abcde":
        core.add_request(request(name, [1], SamplingParams(max_tokens=3)))
    assert {output.request_id for output in core.step()} == {"a", "b"}
    assert (core.stats().num_requests_running, core.stats().num_requests_waiting) == (2, 3)
    run(core)
    assert core.stats().generation_tokens == 15
    assert core.stats().kv_cache_usage_perc == 0.0


def test_an_aborted_request_says_nothing_more() -> None:
    core = make_core(max_num_seqs=1)
    for name in "ab":
        core.add_request(request(name, [1], SamplingParams(max_tokens=3)))
    core.step()
    core.abort_requests(["a", "b", "unknown"])
    assert not core.has_unfinished_requests()
    assert core.stats().num_requests_running == 0


def test_bad_prompts_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        make_core().add_request(request("a", [], SamplingParams()))
    with pytest.raises(ContextLengthError, match="shorten"):
        make_core().add_request(request("a", [1] * 64, SamplingParams()))


def test_it_breaks_when_told_to() -> None:
    core = make_core(FakeOptions(fault="raise", fault_token_id=13))
    core.add_request(request("good", [1], SamplingParams(max_tokens=9)))
    core.step()
    core.add_request(request("bad", [13], SamplingParams(max_tokens=9)))
    with pytest.raises(RuntimeError, match="told to fail"):
        core.step()
