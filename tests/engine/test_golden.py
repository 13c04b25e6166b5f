"""Every recorded case of the original ChatGLM-6B code in float32 on a CPU, in every company, order and shape of the cache.

Logits are compared as recorded (golden README, "Tolerances").
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from glmserve.engine.core import EngineCore
from glmserve.protocol.messages import EngineRequest
from glmserve.protocol.sampling_params import SamplingParams
from glmserve.scheduler.request import Request
from tests.engine.golden import (
    PTUNING_MODELS,
    QUANTIZED_MODELS,
    SMALL_MODELS,
    GoldenCase,
    LogitRecorder,
    all_logits,
    generate,
    make_engine,
    read_cases,
    recorded_logits,
)

PROJECT = Path(__file__).resolve().parents[2]


def engine_of(shared: Path, model: str, **settings: object) -> EngineCore:
    return make_engine(shared / "golden/v1" / model, device="cpu", dtype="float32", kv_cache_memory_bytes=2**27, **settings)


def cases_of(shared: Path, model: str, longest: int = 10_000) -> list[GoldenCase]:
    return [case for case in read_cases(shared / "golden/v1" / model) if len(case.prompt) <= longest]


def tolerance(case: GoldenCase) -> float:
    return 2e-3 if case.is_long else 3e-4


def assert_logits(recorder: LogitRecorder, case: GoldenCase) -> None:
    ids, expected = recorded_logits(case)
    logits = np.stack(recorder.logits[case.name])
    assert len(logits) == len(expected) == len(case.greedy_tokens)
    error = np.abs(np.take_along_axis(logits, ids, 1) - expected).max()
    assert error <= tolerance(case), (case.name, error)
    assert np.abs(logits[0] - case.data["logits_last"]).max() <= tolerance(case), case.name


def answers(cases: list[GoldenCase]) -> dict[str, list[int]]:
    return {case.name: case.greedy_tokens for case in cases}


@pytest.mark.parametrize("model", [*SMALL_MODELS, *QUANTIZED_MODELS, *PTUNING_MODELS])
def test_each_case_alone(shared: Path, model: str) -> None:
    engine = engine_of(shared, model)
    for case in cases_of(shared, model):
        recorder = LogitRecorder(engine)
        assert generate(engine, [case])[case.name] == case.greedy_tokens, case.name
        assert_logits(recorder, case)


@pytest.mark.parametrize("model", [*SMALL_MODELS, *QUANTIZED_MODELS, *PTUNING_MODELS])
def test_all_cases_in_one_batch(shared: Path, model: str) -> None:
    engine, cases = engine_of(shared, model), cases_of(shared, model)
    recorder = LogitRecorder(engine)
    assert generate(engine, cases) == answers(cases)
    for case in cases:
        assert_logits(recorder, case)


@pytest.mark.parametrize("model", ["small", "wide"])
def test_cases_that_arrive_one_after_the_other(shared: Path, model: str) -> None:
    engine, cases = engine_of(shared, model), cases_of(shared, model)
    recorder, tokens, order = LogitRecorder(engine), {case.name: [] for case in cases}, random.Random(7)
    waiting = order.sample(cases, len(cases))
    while waiting or engine.has_unfinished_requests():
        if waiting and order.random() < 0.4:
            submit(engine, waiting.pop())
        for output in engine.step():
            tokens[output.request_id] += output.new_token_ids
    assert tokens == answers(cases)
    for case in cases:
        assert_logits(recorder, case)


def submit(engine: EngineCore, case: GoldenCase) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=len(case.greedy_tokens), stop_token_ids=case.stop_token_ids)
    engine.add_request(EngineRequest(case.name, case.prompt, params, time.monotonic()))


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
@pytest.mark.parametrize("block_size", [1, 3, 16, 256])
def test_any_block_size_with_and_without_reuse(shared: Path, block_size: int, enable_prefix_caching: bool) -> None:
    cases = cases_of(shared, "small", 300)
    engine = engine_of(shared, "small", block_size=block_size, enable_prefix_caching=enable_prefix_caching, max_model_len=300)
    recorder = LogitRecorder(engine)
    for _ in range(2):  # again: contexts come out of the cache
        recorder.logits.clear()
        assert generate(engine, cases) == answers(cases)
        for case in cases:
            assert_logits(recorder, case)
    contexts = sum(int(case.data["context_length"]) for case in cases)
    assert engine.stats().prefix_cache_hits == (contexts if enable_prefix_caching else 0)


@pytest.mark.parametrize("model", ["small", "wide"])
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_a_pool_too_small_for_all_pushes_some_back(shared: Path, model: str, enable_prefix_caching: bool) -> None:
    cases = cases_of(shared, model, 80)
    engine = engine_of(
        shared, model, block_size=4, num_kv_blocks=28, max_model_len=96, max_num_seqs=12, enable_prefix_caching=enable_prefix_caching
    )
    recorder = LogitRecorder(engine)
    assert generate(engine, cases[::-1]) == answers(cases)
    assert engine.stats().num_preemptions > 0, "the pool is not small enough to show anything"
    for case in cases:
        assert_logits(recorder, case)


@pytest.mark.parametrize("model", ["small", "wide", "small_untied", *QUANTIZED_MODELS])
def test_every_row_of_a_context_and_of_what_follows(shared: Path, model: str) -> None:
    """`logits_all`: the context and all that follows in one chunk, as a prompt with an answer begun has it."""
    engine = engine_of(shared, model)
    cases = [case for case in cases_of(shared, model) if "logits_all" in case.data]
    assert cases
    for case in cases:
        logits = all_logits(engine, case.prompt)
        assert np.abs(logits - case.data["logits_all"]).max() <= 3e-4, case.name


@pytest.mark.parametrize("model", SMALL_MODELS)
def test_borders_and_positions(shared: Path, model: str) -> None:
    spec = engine_of(shared, model).spec
    for case in cases_of(shared, model):
        request = Request(EngineRequest("x", case.prompt, SamplingParams(), 0.0), spec, 2048, seed=0)
        assert (request.context_len, request.mask_position) == (case.data["context_length"], case.data["mask_position"])
        positions = np.array([request.positions_of(index) for index in range(len(case.prompt))]).T
        assert (positions == case.data["position_ids"]).all()


@pytest.mark.parametrize("model, kernels", [("small", "fused"), ("small", "plain"), ("small_ptuning_plain", "fused")])
def test_the_kernels_of_the_gpu_on_the_interpreter(shared: Path, model: str, kernels: str) -> None:
    """The whole CUDA path but for CUDA itself: Triton kernels, the GPU's order of the cache, and ids that the host reads one step late."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'glmserve[interpreter]'")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "tests.engine.interpreted", str(shared / "golden/v1" / model), kernels]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=PROJECT)
    assert run.returncode == 0, run.stdout + run.stderr
