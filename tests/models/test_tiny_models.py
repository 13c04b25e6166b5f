"""Both families from a clone alone: the engine on the fixture models says what an independent implementation said, alone and batched."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.engine.golden import LogitRecorder, generate, make_engine
from tests.models import chatglm_reference, llama_fixture
from tests.models.tiny import FIXTURES, tiny_cases

MODELS = ["chatglm-tiny", "llama-tiny"]
TOLERANCE = 3e-4  # float32 against float64 or another order of sums


@pytest.mark.parametrize("model", MODELS)
def test_alone_and_batched_equal_the_reference(model: str) -> None:
    cases = tiny_cases(FIXTURES / model)
    expected = {case.name: case.greedy_tokens for case in cases}
    engine = make_engine(FIXTURES / model, device="cpu")
    recorder = LogitRecorder(engine)
    assert {case.name: generate(engine, [case], ignore_eos=True)[case.name] for case in cases} == expected
    for case in cases:
        assert np.abs(recorder.logits[case.name][0] - case.data["logits"]).max() <= TOLERANCE
    assert generate(engine, cases, ignore_eos=True) == expected
    assert generate(engine, cases[::-1], ignore_eos=True) == expected


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("block_size", [1, 3, 16, 256])
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_blocks_and_caching_change_nothing(model: str, block_size: int, enable_prefix_caching: bool) -> None:
    cases = tiny_cases(FIXTURES / model)
    engine = make_engine(FIXTURES / model, device="cpu", block_size=block_size, enable_prefix_caching=enable_prefix_caching)
    for _ in range(2):  # the second time out of the cache
        assert generate(engine, cases, ignore_eos=True) == {case.name: case.greedy_tokens for case in cases}
    assert (engine.stats().prefix_cache_hits > 0) == (enable_prefix_caching and not (model == "llama-tiny" and block_size == 256))


@pytest.mark.parametrize("model", MODELS)
def test_a_tight_pool_and_budget_change_nothing(model: str) -> None:
    cases = tiny_cases(FIXTURES / model)
    random.Random(0).shuffle(cases)
    settings = {"max_model_len": 100, "block_size": 4, "num_kv_blocks": 31, "max_num_batched_tokens": 16, "max_num_seqs": 5}
    engine = make_engine(FIXTURES / model, device="cpu", **settings)
    assert generate(engine, cases, ignore_eos=True) == {case.name: case.greedy_tokens for case in cases}
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.kv_cache_usage_perc == 0.0


@pytest.mark.parametrize("model", ["small", "wide", "small_untied"])
def test_the_numpy_reference_is_the_original(shared: Path, model: str) -> None:
    reference = chatglm_reference.ChatGLMReference(shared / "golden/v1" / model)
    for path in sorted((shared / "golden/v1" / model / "cases").glob("*.npz")):
        case = np.load(path)
        ids = case["input_ids"].tolist()
        if len(ids) > 80:  # the mask is square
            continue
        logits = reference.logits(ids)
        expected, rows = (case["logits_all"], logits) if "logits_all" in case else (case["logits_last"], logits[-1])
        assert np.abs(rows - expected).max() <= 1e-4, path.stem
        assert (reference.positions(ids) == case["position_ids"]).all()
        assert (reference.visible(ids).sum(axis=1) == case["visible_per_row"]).all()


def test_the_chatglm_fixture_is_what_its_script_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chatglm_reference.write_fixture(tmp_path)
    assert tiny_cases_equal(tmp_path, FIXTURES / "chatglm-tiny")


def tiny_cases_equal(a: Path, b: Path) -> bool:
    pairs = zip(tiny_cases(a), tiny_cases(b), strict=True)
    return all(
        x.prompt == y.prompt and x.greedy_tokens == y.greedy_tokens and np.allclose(x.data["logits"], y.data["logits"]) for x, y in pairs
    )


@pytest.mark.slow
def test_the_llama_fixture_is_what_transformers_says() -> None:
    pytest.importorskip("transformers", reason="transformers, the second opinion, is not installed")
    folder = FIXTURES / "llama-tiny"
    answers = llama_fixture.transformers_answers(folder)
    for case in tiny_cases(folder):
        assert answers[case.name]["tokens"] == case.greedy_tokens
        assert np.allclose(answers[case.name]["logits"], case.data["logits"], atol=1e-4)
