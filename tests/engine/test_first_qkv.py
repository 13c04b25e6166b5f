"""The first layer's q|k|v of each token as a table: the same answers, a matrix less to read, and memory that is accounted for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glmserve.config import EngineConfig
from glmserve.engine import loading, memory
from glmserve.models.catalog import read_spec
from glmserve.models.floor import layer_values
from glmserve.models.spec import ModelSpec
from tests.engine.golden import PTUNING_MODELS, LogitRecorder, generate, make_engine, read_cases
from tests.models.tiny import FIXTURES, tiny_cases

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TOLERANCE = 3e-4  # float32 against float64 or another order of sums


@pytest.fixture
def spec() -> ModelSpec:
    return read_spec(FIXTURES / "chatglm-tiny")


@pytest.fixture
def with_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no use for it, but its numbers are the same there."""
    monkeypatch.setattr(loading, "with_first_qkv", lambda config, spec, dtype, device: replace(spec, knows_first_qkv=True))


@pytest.mark.usefixtures("with_table")
@pytest.mark.parametrize("block_size", [3, 16])
def test_answers_are_the_same(block_size: int, spec: ModelSpec) -> None:
    cases = tiny_cases(FIXTURES / "chatglm-tiny")
    engine = make_engine(FIXTURES / "chatglm-tiny", device="cpu", block_size=block_size)
    assert engine.runner.model.first_qkv.shape == (spec.vocab_size, spec.qkv_values)
    recorder = LogitRecorder(engine)
    assert generate(engine, cases, ignore_eos=True) == {case.name: case.greedy_tokens for case in cases}
    for case in cases:
        assert np.abs(recorder.logits[case.name][0] - case.data["logits"]).max() <= TOLERANCE


@pytest.mark.usefixtures("with_table")
@pytest.mark.parametrize("model", PTUNING_MODELS)
def test_soft_tokens_have_no_part_in_it(shared: Path, model: str) -> None:
    cases = read_cases(shared / "golden/v1" / model)
    engine = make_engine(shared / "golden/v1" / model, device="cpu", dtype="float32", kv_cache_memory_bytes=2**24, max_model_len=80)
    assert generate(engine, cases) == {case.name: case.greedy_tokens for case in cases}


@pytest.mark.usefixtures("with_table")
def test_the_first_product_is_not_made() -> None:
    engine = make_engine(FIXTURES / "chatglm-tiny", device="cpu")
    engine.runner.model.layers[0].query_key_value = None
    case = tiny_cases(FIXTURES / "chatglm-tiny")[0]
    assert generate(engine, [case], ignore_eos=True)[case.name] == case.greedy_tokens


@pytest.mark.usefixtures("with_table")
def test_its_memory_counts_as_weights(spec: ModelSpec) -> None:
    table = memory.first_qkv_bytes(replace(spec, knows_first_qkv=True), torch.float32)
    assert table == 4 * spec.vocab_size * spec.qkv_values
    ready = make_engine(FIXTURES / "chatglm-tiny", device="cpu").ready
    parts = [part for part, _, _ in ready.placement]
    assert any("first layer" in part for part in parts)
    assert ready.weights_bytes > table


def test_a_matrix_less_is_read(spec: ModelSpec) -> None:
    assert layer_values(spec) - layer_values(replace(spec, knows_first_qkv=True)) == spec.hidden_size * spec.qkv_values


@pytest.mark.parametrize(
    ("there", "device", "kernels", "family", "known"),
    [
        (1.0, GPU, "fused", "chatglm", True),
        (0.99, GPU, "fused", "chatglm", False),
        (1.0, CPU, "fused", "chatglm", False),
        (1.0, GPU, "plain", "chatglm", False),
        (1.0, GPU, "fused", "llama", False),
    ],
)
def test_it_is_kept_where_memory_is_plenty(
    there: float, device: torch.device, kernels: str, family: str, known: bool, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plenty: twenty times what it takes."""
    spec = replace(spec, family=family)
    needed = memory.first_qkv_bytes(replace(spec, knows_first_qkv=True), torch.float16)
    monkeypatch.setattr(memory, "available_bytes", lambda config, device: int(20 * there * needed))
    config = EngineConfig(model="x", kernels=kernels)  # type: ignore[arg-type]
    assert memory.with_first_qkv(config, spec, torch.float16, device).knows_first_qkv is known
