"""Quantized weights and K/V through the engine: released checkpoints, plain ones rounded as they load, dummy ones, and what is refused.

On a CPU the rounded numbers lie in plain weights.  `packed` keeps them packed as on a GPU, with the plain twin as the kernel.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glmserve.engine import formats, loading
from glmserve.engine.core import EngineCore
from glmserve.layers.linear import Linear
from glmserve.layers.quantized_linear import QuantizedLinear
from glmserve.models.floor import head_values, layer_values
from glmserve.protocol.errors import ModelLoadError
from glmserve.runner import loader
from tests.engine.golden import QUANTIZED_MODELS, LogitRecorder, generate, make_engine, read_cases, recorded_logits
from tests.models.tiny import FIXTURES, tiny_cases

FORMATS = ["int8", "int4", "fp8"]
MODELS = ["chatglm-tiny", "llama-tiny"]
Load = Callable[..., EngineCore]


def keep_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on weights stay packed on a CPU too."""
    for module in (loading, loader):
        monkeypatch.setattr(module, "kept_on", lambda device, spec: spec)


@pytest.fixture(params=["plain", "packed"])
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Engines on a CPU in float32."""
    if request.param == "packed":
        keep_packed(monkeypatch)
    return load_plain


def load_plain(folder: Path, **settings: Any) -> EngineCore:
    return make_engine(folder, **{"device": "cpu", "num_kv_blocks": 400, "max_model_len": 200, **settings})


def logits_of(engine: EngineCore, model: str) -> np.ndarray:
    """Scores of the first step of every case, a row each."""
    cases, recorder = tiny_cases(FIXTURES / model), LogitRecorder(engine)
    generate(engine, cases, ignore_eos=True)
    return np.stack([recorder.logits[case.name][0] for case in cases])


def relative_error(out: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(out - reference) / np.linalg.norm(reference))


# --- released checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", QUANTIZED_MODELS)
def test_a_released_checkpoint_kept_packed_is_the_original(shared: Path, load: Load, model: str) -> None:
    cases = read_cases(shared / "golden/v1" / model)
    engine = load(shared / "golden/v1" / model, dtype="float32")
    for batch in ([cases[0]], cases):
        recorder = LogitRecorder(engine)
        assert generate(engine, batch) == {case.name: case.greedy_tokens for case in batch}
        for case in batch:
            ids, expected = recorded_logits(case)
            assert np.abs(np.take_along_axis(np.stack(recorder.logits[case.name]), ids, 1) - expected).max() <= 3e-4


def test_what_is_released_as_integers_stays_integers(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_packed(monkeypatch)
    for model, layer, head in (
        ("quant_int8", torch.int8, None),
        ("quant_int4", torch.uint8, None),
        ("quant_int4_qe", torch.uint8, torch.uint8),
    ):
        engine = load_plain(shared / "golden/v1" / model)
        modules = dict(engine.runner.model.named_modules())
        layers = [
            module for name, module in modules.items() if name.startswith("layers.") and isinstance(module, (Linear, QuantizedLinear))
        ]
        assert len(layers) == 12 and all(module.weight.dtype == layer for module in layers)
        assert modules["lm_head"].weight.dtype == (head or torch.float32)
        spec = engine.spec
        packed = layer_values(spec) // (1 if layer == torch.int8 else 2)
        ends = head_values(spec) * 4 * (2 if head else 1) - (head_values(spec) * 7 // 2 if head else 0)
        assert packed + ends < engine.ready.weights_bytes < packed + ends + 40_000, "beside the matrices: scales, biases, norms"
        assert engine.ready.quantization == ("int8" if layer == torch.int8 else "int4")
        assert engine.ready.quantization in engine.ready.placement[1][0]


@pytest.fixture
def released(tmp_path: Path, shared: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A copy of a released int4 checkpoint to do harm to, and its tensors."""
    folder = shared / "golden/v1/quant_int4"
    shutil.copy(folder / "config.json", tmp_path)
    return tmp_path, load_file(folder / "model.safetensors")


MATRIX = "transformer.layers.1.mlp.dense_h_to_4h.weight"


def complaint_of(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_plain(folder, **settings)
    return str(caught.value)


def test_the_two_tensors_of_a_matrix_may_come_in_any_order_and_file(released: tuple[Path, dict[str, torch.Tensor]], shared: Path) -> None:
    folder, tensors = released
    torch.save({name: tensor for name, tensor in tensors.items() if name.endswith("_scale")}, folder / "pytorch_model-00001-of-00002.bin")
    rest = {name: tensor for name, tensor in reversed(tensors.items()) if not name.endswith("_scale")}
    torch.save(rest, folder / "pytorch_model-00002-of-00002.bin")
    case = read_cases(shared / "golden/v1/quant_int4")[0]
    assert generate(load_plain(folder), [case])[case.name] == case.greedy_tokens


@pytest.mark.parametrize("absent", [MATRIX, MATRIX + "_scale"])
def test_half_a_matrix(released: tuple[Path, dict[str, torch.Tensor]], absent: str) -> None:
    folder, tensors = released
    del tensors[absent]
    save_file(tensors, folder / "model.safetensors")
    message = complaint_of(folder)
    assert f"not '{absent}'" in message and str(folder) in message


@pytest.mark.parametrize("change", [lambda s: s[:-1].clone(), lambda s: s[:, None].clone(), lambda s: s.to(torch.int32)])
def test_scales_that_do_not_belong_to_the_rows(released: tuple[Path, dict[str, torch.Tensor]], change: Any) -> None:
    folder, tensors = released
    save_file(tensors | {MATRIX + "_scale": change(tensors[MATRIX + "_scale"])}, folder / "model.safetensors")
    assert MATRIX in complaint_of(folder)


def test_a_matrix_of_another_shape(released: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, tensors = released
    save_file(tensors | {MATRIX: tensors[MATRIX][:, :-1].clone()}, folder / "model.safetensors")
    message = complaint_of(folder)
    assert MATRIX in message and "[256, 62]" in message and "[256, 64]" in message


@pytest.mark.parametrize(("bits", "words"), [(8, "[64, 32]"), (None, "no quantization_bit")])
def test_integers_under_another_config(released: tuple[Path, dict[str, torch.Tensor]], bits: int | None, words: str) -> None:
    folder, tensors = released
    config = json.loads((folder / "config.json").read_text()) | {"quantization_bit": bits}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    assert words in complaint_of(folder)


def test_a_released_checkpoint_as_plain_numbers_is_the_same_model(shared: Path, load: Load) -> None:
    for model, named in (("quant_int8", "int8"), ("quant_int4", "int4")):
        case = read_cases(shared / "golden/v1" / model)[0]
        for asked in ("auto", named, "none"):
            engine = load(shared / "golden/v1" / model, quantization=asked)
            assert engine.ready.quantization == ("none" if asked == "none" else named)
            assert generate(engine, [case])[case.name] == case.greedy_tokens


def test_four_bits_do_not_become_eight(shared: Path) -> None:
    for asked in ("int8", "fp8"):
        message = complaint_of(shared / "golden/v1/quant_int4", quantization=asked)
        assert f"--quantization {asked}" in message and "4 bits already" in message


@pytest.mark.parametrize("asked", ["int4", "fp8"])
def test_released_int8_may_be_rounded_further(shared: Path, load: Load, asked: str) -> None:
    folder = shared / "golden/v1/quant_int8"
    [case] = read_cases(folder)[:1]
    scores = {}
    for quantization in ("auto", asked):
        engine = load(folder, quantization=quantization)
        recorder = LogitRecorder(engine)
        generate(engine, [case])
        scores[quantization] = recorder.logits[case.name][0]
        assert engine.ready.quantization == ("int8" if quantization == "auto" else asked)
    assert 1e-3 < relative_error(scores[asked], scores["auto"]) < 1.0


# --- plain checkpoints, rounded as they load --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_rounded_model_says_about_the_same(load: Load, model: str, weight_format: str) -> None:
    plain, rounded = (logits_of(load(FIXTURES / model, quantization=asked), model) for asked in ("none", weight_format))
    error = relative_error(rounded, plain)
    assert {"int8": 1e-4, "int4": 1e-3, "fp8": 1e-3}[weight_format] < error < {"int8": 0.05, "int4": 0.6, "fp8": 0.2}[weight_format]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_packed_and_plain_are_the_same_numbers(monkeypatch: pytest.MonkeyPatch, model: str, weight_format: str, load_format: str) -> None:
    settings = {"quantization": weight_format, "load_format": load_format}
    plain = logits_of(load_plain(FIXTURES / model, **settings), model)
    keep_packed(monkeypatch)
    engine = load_plain(FIXTURES / model, **settings)
    assert {type(module) for module in engine.runner.model.modules()} >= {QuantizedLinear}  # type: ignore[attr-defined]
    packed = logits_of(engine, model)
    assert np.isfinite(packed).all() and packed.std() > 0.01
    np.testing.assert_allclose(packed, plain, atol=2e-4 * float(np.abs(plain).max()))


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_tied_output_layer_is_rounded_and_the_embedding_is_not(tmp_path: Path, load: Load, weight_format: str) -> None:
    shutil.copy(FIXTURES / "chatglm-tiny/config.json", tmp_path)
    tensors = load_file(FIXTURES / "chatglm-tiny/model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, tmp_path / "model.safetensors")
    with_head, without = (load(folder, quantization=weight_format) for folder in (FIXTURES / "chatglm-tiny", tmp_path))
    assert np.array_equal(logits_of(with_head, "chatglm-tiny"), logits_of(without, "chatglm-tiny"))
    embedding = without.runner.model.word_embeddings  # type: ignore[attr-defined]
    assert torch.equal(embedding, tensors["transformer.word_embeddings.weight"])
    assert not torch.equal(without.runner.model.lm_head.weight.float(), embedding)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_memory_asked_for_is_the_memory_taken(monkeypatch: pytest.MonkeyPatch, load: Load, weight_format: str) -> None:
    asked: list[int] = []
    monkeypatch.setattr(loading, "check_room_for_weights", lambda needed, config, device: asked.append(needed))
    engine = load(FIXTURES / "chatglm-tiny", quantization=weight_format)
    assert asked == [engine.ready.weights_bytes]


def test_large_matrices_are_rounded_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logits_of(load_plain(FIXTURES / "llama-tiny", quantization="int4"), "llama-tiny")
    monkeypatch.setattr("glmserve.runner.parameters._NUMBERS_AT_ONCE", 100)
    parts = logits_of(load_plain(FIXTURES / "llama-tiny", quantization="int4"), "llama-tiny")
    assert np.array_equal(whole, parts)


def test_half_precision_activations(load: Load) -> None:
    for weight_format in FORMATS:
        engine = load(FIXTURES / "chatglm-tiny", quantization=weight_format, dtype="bfloat16")
        assert engine.ready.dtype == "bfloat16" and engine.ready.quantization == weight_format
        assert np.isfinite(logits_of(engine, "chatglm-tiny")).all()


def test_odd_columns_do_not_fit_into_int4(tmp_path: Path) -> None:
    config = json.loads((FIXTURES / "chatglm-tiny/config.json").read_text()) | {"inner_hidden_size": 63}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "63 columns" in complaint_of(tmp_path, load_format="dummy", quantization="int4")
    load_plain(tmp_path, load_format="dummy", quantization="int8")


def test_a_gpu_without_8_bit_floats_says_what_to_use_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    spec = load_plain(FIXTURES / "chatglm-tiny").spec
    config = loading.EngineConfig(quantization="fp8", kv_cache_dtype="fp8")
    with pytest.raises(ModelLoadError, match=r"A100 \(sm_80\).*--quantization int8"):
        formats.with_formats(config, spec, torch.device("cuda"))
    with pytest.raises(ModelLoadError, match=r"A100 \(sm_80\).*--kv-cache-dtype auto"):
        formats.kv_cache_dtype(config, torch.float16, torch.device("cuda"))


# --- fp8 keys and values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_fp8_keys_and_values_take_a_byte_and_change_little(model: str) -> None:
    plain, small = (load_plain(FIXTURES / model, kv_cache_dtype=asked) for asked in ("auto", "fp8"))
    assert small.ready.kv_cache_dtype == "float8_e4m3fn" and "float8" in small.ready.placement[-1][0]
    assert small.ready.kv_cache_bytes * 4 == plain.ready.kv_cache_bytes
    assert 1e-4 < relative_error(logits_of(small, model), logits_of(plain, model)) < 0.15


@pytest.mark.parametrize("model", MODELS)
def test_fp8_answers_do_not_depend_on_company_memory_or_cache(model: str) -> None:
    cases = tiny_cases(FIXTURES / model)
    roomy = load_plain(FIXTURES / model, kv_cache_dtype="fp8")
    alone = {case.name: generate(roomy, [case], ignore_eos=True)[case.name] for case in cases}
    assert generate(roomy, cases, ignore_eos=True) == alone  # contexts out of the cache, blocks copied
    assert roomy.stats().prefix_cache_hits > 0
    tight = load_plain(FIXTURES / model, kv_cache_dtype="fp8", max_model_len=100, block_size=4, num_kv_blocks=31, max_num_seqs=5)
    assert generate(tight, cases, ignore_eos=True) == alone
    assert tight.stats().num_preemptions > 0
