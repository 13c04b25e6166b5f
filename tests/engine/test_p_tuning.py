"""P-Tuning: trained keys and values in front of every sequence, against the original's recorded outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glmserve.engine.core import EngineCore
from glmserve.protocol.errors import ModelLoadError
from tests.engine.golden import PTUNING_MODELS, LogitRecorder, generate, make_engine, read_cases, recorded_logits
from tests.models.tiny import FIXTURES

PROJ = "small_ptuning_proj"
ENCODER = "transformer.prefix_encoder."


def load(folder: Path, **settings: Any) -> EngineCore:
    return make_engine(folder, **{"device": "cpu", "dtype": "float32", "kv_cache_memory_bytes": 2**24, "max_model_len": 80, **settings})


def assert_answers(engine: EngineCore, folder: Path) -> None:
    cases, recorder = read_cases(folder), LogitRecorder(engine)
    assert generate(engine, cases) == {case.name: case.greedy_tokens for case in cases}
    for case in cases:
        ids, expected = recorded_logits(case)
        assert np.abs(np.take_along_axis(np.stack(recorder.logits[case.name]), ids, 1) - expected).max() <= 3e-4, case.name


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 256])
def test_any_block_size_with_and_without_reuse(shared: Path, block_size: int, enable_prefix_caching: bool) -> None:
    folder = shared / "golden/v1" / PROJ
    engine = load(folder, block_size=block_size, enable_prefix_caching=enable_prefix_caching)
    for _ in range(2):  # again: contexts come out of the cache
        assert_answers(engine, folder)
    contexts = sum(int(case.data["context_length"]) for case in read_cases(folder))
    assert engine.stats().prefix_cache_hits == (contexts if enable_prefix_caching else 0)


@pytest.mark.parametrize("model", PTUNING_MODELS)
def test_a_pool_too_small_for_all_pushes_some_back(shared: Path, model: str) -> None:
    folder = shared / "golden/v1" / model
    engine = load(folder, block_size=3, num_kv_blocks=34, max_model_len=80, kv_cache_memory_bytes=None)
    assert_answers(engine, folder)
    assert engine.stats().num_preemptions > 0, "the pool is not small enough to show anything"
    assert engine.scheduler.kv_cache.pool.num_free == 33 - 3, "blocks leaked"


@pytest.mark.parametrize("model", PTUNING_MODELS)
def test_what_lies_in_the_shared_blocks_is_the_originals(shared: Path, model: str) -> None:
    engine = load(shared / "golden/v1" / model, block_size=3)
    expected = np.load(shared / "golden/v1" / model / "prefix_kv.npz")
    blocks = engine.scheduler.kv_cache.soft_blocks
    for layer, cache in enumerate(engine.runner.pool.caches):
        for stored, name in ((cache.key, "prefix_k"), (cache.value, "prefix_v")):
            np.testing.assert_allclose(stored[blocks].flatten(0, 1)[:8], expected[name][layer], atol=1e-6)


def test_what_made_them_is_let_go(shared: Path) -> None:
    folder = shared / "golden/v1" / PROJ
    engine = load(folder)
    assert not [name for name, _ in engine.runner.model.named_parameters() if "prefix_encoder" in name]
    tensors = load_file(folder / "model.safetensors")
    kept = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith(ENCODER) and name != "lm_head.weight")
    assert engine.ready.weights_bytes == kept


@pytest.mark.parametrize("settings", [{"quantization": "int8"}, {"kv_cache_dtype": "fp8"}, {"load_format": "dummy"}, {"dtype": "bfloat16"}])
def test_it_goes_with_other_settings(shared: Path, settings: dict[str, Any]) -> None:
    folder = shared / "golden/v1" / PROJ
    engine, cases = load(folder, **settings), read_cases(folder)
    recorder = LogitRecorder(engine)
    generate(engine, cases)
    for case in cases:
        first = recorder.logits[case.name][0]
        assert np.isfinite(first).all()
        if "load_format" not in settings:
            error = np.linalg.norm(first - case.data["logits_last"]) / np.linalg.norm(case.data["logits_last"])
            assert 1e-5 < error < 0.3, (case.name, error)


def test_a_pool_without_room_for_context_and_trained_tokens(shared: Path) -> None:
    with pytest.raises(ModelLoadError, match="--max-model-len"):
        load(shared / "golden/v1" / PROJ, block_size=8, num_kv_blocks=12, kv_cache_memory_bytes=None)  # 10 + 1 + 1 and the null block
    load(shared / "golden/v1" / PROJ, block_size=8, num_kv_blocks=13, kv_cache_memory_bytes=None)


@pytest.mark.parametrize("absent", ["embedding.weight", "trans.0.weight", "trans.2.bias"])
def test_a_missing_part_is_named(shared: Path, tmp_path: Path, absent: str) -> None:
    shutil.copy(shared / "golden/v1" / PROJ / "config.json", tmp_path)
    tensors = load_file(shared / "golden/v1" / PROJ / "model.safetensors")
    del tensors[ENCODER + absent]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"prefix_encoder.{absent}"):
        load(tmp_path)


def test_another_number_of_trained_tokens(shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden/v1" / PROJ
    shutil.copy(folder / "model.safetensors", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for length, words in ((9, r"\[8, 64\], but config.json asks for \[9, 64\]"), (0, "does not have")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"pre_seq_len": length}))
        with pytest.raises(ModelLoadError, match=words):
            load(tmp_path)


def test_answers_are_others_than_without(shared: Path) -> None:
    """Or the tests above could not fail."""
    folder = shared / "golden/v1" / PROJ
    engine, [case, *_] = load(folder), read_cases(folder)
    with torch.inference_mode():
        engine.runner.pool.blocks[:, :, engine.scheduler.kv_cache.soft_blocks] = 0.0
    assert generate(engine, [case])[case.name] != case.greedy_tokens


@pytest.mark.parametrize("model", PTUNING_MODELS)
@pytest.mark.parametrize("others", [False, True], ids=["prefix alone", "with all the rest"])
def test_a_checkpoint_of_its_own_beside_the_base_model(shared: Path, tmp_path: Path, model: str, others: bool) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    base.mkdir()
    tuned.mkdir()
    tensors = load_file(shared / "golden/v1" / model / "model.safetensors")
    config = json.loads((shared / "golden/v1" / model / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({key: value for key, value in config.items() if not key.startswith("pre")}))
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER)}, base / "model.safetensors")
    wanted = {name: tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}
    torch.save({**(dict.fromkeys(tensors, torch.zeros(3)) if others else {}), **wanted}, tuned / "pytorch_model.bin")
    assert_answers(load(base, ptuning_checkpoint=str(tuned)), shared / "golden/v1" / model)


def test_a_folder_that_is_no_such_checkpoint(shared: Path) -> None:
    small = shared / "golden/v1/small"
    with pytest.raises(ModelLoadError, match="no P-Tuning checkpoint"):
        load(small, ptuning_checkpoint=str(small))
    with pytest.raises(ModelLoadError, match="no weights"):
        load(small, ptuning_checkpoint=str(small / "cases"))
    with pytest.raises(ModelLoadError, match="for ChatGLM-6B"):
        load(FIXTURES / "llama-tiny", ptuning_checkpoint=str(shared / "golden/v1" / PROJ))
