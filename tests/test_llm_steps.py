"""How the offline face drives its engine: when the first step begins, how large it is, what an interrupt and Python's collector do."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import glmserve
from glmserve import LLM, SamplingParams
from glmserve.config import EngineConfig
from glmserve.protocol.errors import InvalidRequestError
from tests.models.tiny import FIXTURES, tiny_cases

FOLDER = FIXTURES / "chatglm-tiny"
CASES = tiny_cases(FOLDER)
PROMPTS = [{"prompt_token_ids": case.prompt} for case in CASES]


def greedy() -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(model=str(FOLDER), device="cpu", dtype="float32", skip_tokenizer_init=True, max_num_seqs=16)


@pytest.fixture(autouse=True)
def nothing_left_behind(llm: LLM) -> Iterator[None]:
    yield
    assert not llm.engine.has_unfinished_requests()
    assert llm.engine.stats().kv_cache_usage_perc == 0.0


def test_the_first_step_begins_before_the_last_prompt_is_handed_in(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, handed_in = llm.engine.step, list[int]()

    def counted() -> Any:
        handed_in.append(llm.engine.scheduler.num_waiting)
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "step", counted)
        patch.setattr(llm.engine.scheduler, "max_num_batched_tokens", sum(len(case.prompt) for case in CASES[:2]))
        results = llm.generate(PROMPTS, greedy(), use_tqdm=False)
        assert handed_in[0] == 2 and max(handed_in) > 2
        assert [result.outputs[0].token_ids for result in results] == [case.greedy_tokens for case in CASES]
        with pytest.raises(InvalidRequestError, match="empty"):
            llm.generate([*PROMPTS, []], greedy(), use_tqdm=False)
    assert not llm.engine.scheduler.requests, "nobody would read their answers"
    [result] = llm.generate(PROMPTS[0], greedy(), use_tqdm=False)
    assert result.outputs[0].token_ids == CASES[0].greedy_tokens


def test_an_interrupt_leaves_nothing_running(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, count = llm.engine.step, iter(range(3))

    def interrupted() -> Any:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, greedy(), use_tqdm=False)
    assert llm.generate(PROMPTS[0], greedy(), use_tqdm=False)[0].outputs[0].token_ids == CASES[0].greedy_tokens


@pytest.mark.parametrize("at", [0, 1])
def test_a_step_that_was_cut_off_leaves_nothing_to_be_found(llm: LLM, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """What was to be written into the K/V cache may not have been."""
    execute, count = llm.engine.runner.execute, iter(range(at))

    def cut_off(batch: Any) -> Any:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return execute(batch)

    llm.engine.forget_cached()
    with torch.inference_mode():
        llm.engine.runner.pool.blocks[:, :, 1:].fill_(7.0)  # nothing right is left there from before
    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "execute", cut_off)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, greedy(), use_tqdm=False)
    for _ in range(2):
        results = llm.generate(PROMPTS, greedy(), use_tqdm=False)
        assert [result.outputs[0].token_ids for result in results] == [case.greedy_tokens for case in CASES]


def test_parameters_that_cannot_be_leave_no_request_behind(llm: LLM) -> None:
    assert llm.tokenizer is None
    with pytest.raises(InvalidRequestError, match="stop strings"):
        llm.generate(PROMPTS[0], SamplingParams(stop=["x"], max_tokens=None), use_tqdm=False)
    assert not llm.engine.scheduler.requests


@pytest.mark.parametrize("frozen_by_python", [0, 375])
def test_the_collector_leaves_alone_what_was_there_and_gets_it_back(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, frozen_by_python: int
) -> None:
    step, frozen, count = llm.engine.step, list[int](), gc.get_freeze_count

    def watched() -> Any:
        frozen.append(count())
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "step", watched)
        patch.setattr(gc, "get_freeze_count", lambda: max(frozen_by_python, count()))
        llm.generate(PROMPTS[0], greedy(), use_tqdm=False)
        assert min(frozen) > 10_000 and count() == 0
        gc.freeze()
        try:
            llm.generate(PROMPTS[0], greedy(), use_tqdm=False)
            assert count(), "what the caller froze stays so"
        finally:
            gc.unfreeze()


@pytest.mark.parametrize("gibibytes,given,expected", [(79, None, 16384), (79, 100, 100), (24, None, None)])
def test_a_step_on_a_large_gpu_takes_more_prompt_tokens_than_a_servers(
    monkeypatch: pytest.MonkeyPatch, gibibytes: int, given: int | None, expected: int | None
) -> None:
    class Seen(Exception): ...

    def see(config: EngineConfig) -> None:
        assert config.max_num_batched_tokens == expected
        raise Seen

    monkeypatch.setattr(glmserve.llm, "_memory_of", lambda _: gibibytes * 2**30)
    monkeypatch.setattr(glmserve.llm, "EngineCore", see)
    with pytest.raises(Seen):
        LLM(model=str(FOLDER), max_num_batched_tokens=given)
