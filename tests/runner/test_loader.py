"""Weight folders as people have them: the released layout, the half downloaded, the wrong ones, the malicious."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmserve.engine import loading, memory
from glmserve.engine.core import EngineCore
from glmserve.protocol.errors import ModelLoadError, NotEnoughMemoryError
from tests.engine.golden import generate, make_engine
from tests.models.tiny import FIXTURES, tiny_cases

CHATGLM, LLAMA = FIXTURES / "chatglm-tiny", FIXTURES / "llama-tiny"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors() -> Tensors:
    return load_file(CHATGLM / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ChatGLM folder with its config.json and no weights yet."""
    shutil.copy(CHATGLM / "config.json", tmp_path)
    return tmp_path


def write_released_layout(folder: Path, tensors: Tensors, shards: int = 3) -> list[Path]:
    """pytorch_model-0000x-of-0000y.bin with their index, float16, and the inv_freq keys that real files have."""
    half = {name: tensor.half() for name, tensor in tensors.items()}
    half |= {f"transformer.layers.{layer}.attention.rotary_emb.inv_freq": torch.full((4,), 77.0).half() for layer in range(2)}
    names, files, index = sorted(half), [], {}
    for number in range(shards):
        path = folder / f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {name: half[name] for name in names[number::shards]}
        torch.save(part, path)
        files.append(path)
        index |= dict.fromkeys(part, path.name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return files


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_told_from_a_broken_file(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelLoadError, match=f"{name} cannot be read.*git lfs pull"):
        make_engine(folder)


def test_a_folder_of_trained_soft_tokens_that_is_not_there(folder: Path) -> None:
    shutil.copy(CHATGLM / "model.safetensors", folder)
    with pytest.raises(ModelLoadError, match="there is no folder"):
        make_engine(folder, ptuning_checkpoint=str(folder / "nowhere"))


def test_a_pool_that_was_asked_for_and_is_too_small_names_its_flag(folder: Path) -> None:
    shutil.copy(CHATGLM / "model.safetensors", folder)
    with pytest.raises(NotEnoughMemoryError, match="Raise --kv-cache-memory-bytes"):
        make_engine(folder, num_kv_blocks=2)


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def load(folder: Path, **settings: Any) -> EngineCore:
    return make_engine(folder, **{"device": "cpu", "num_kv_blocks": 40, **settings})


def assert_answers(engine: EngineCore, fixture: Path = CHATGLM) -> None:
    cases = tiny_cases(fixture)
    assert generate(engine, cases, ignore_eos=True) == {case.name: case.greedy_tokens for case in cases}


def complaint_of(folder: Path, kind: type[ModelLoadError] = ModelLoadError, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        load(folder, **settings)
    return str(caught.value)


# --- layouts that load --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_the_released_layout(folder: Path, tensors: Tensors, shards: int) -> None:
    """float16 shards with an index and inv_freq keys; the fixture's numbers fit into float16, so nothing may differ."""
    write_released_layout(folder, tensors, shards)
    engine = load(folder)
    assert engine.ready.dtype == "float32"
    assert_answers(engine)


def test_shards_without_an_index(folder: Path, tensors: Tensors) -> None:
    write_released_layout(folder, tensors)
    (folder / "pytorch_model.bin.index.json").unlink()
    assert_answers(load(folder))


def test_safetensors_shards_with_an_index_come_before_bin_files(folder: Path, tensors: Tensors) -> None:
    names, index = sorted(tensors), {}
    for number in range(2):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[number::2]}, folder / file)
        index |= dict.fromkeys(names[number::2], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    assert_answers(load(folder))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_load_and_answer(dtype: str) -> None:
    engine = load(CHATGLM, dtype=dtype)
    assert engine.ready.dtype == dtype and engine.runner.pool.blocks.dtype == getattr(torch, dtype)
    [case] = [case for case in tiny_cases(CHATGLM) if case.name == "second sop"]
    assert generate(engine, [case], ignore_eos=True)[case.name][0] == case.greedy_tokens[0]


@pytest.mark.parametrize("stored", ["equal", "absent"])
def test_a_tied_output_layer_is_one_tensor(folder: Path, tensors: Tensors, stored: str) -> None:
    if stored == "absent":
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    engine = load(folder)
    assert engine.runner.model.lm_head.weight is engine.runner.model.word_embeddings  # type: ignore[attr-defined]
    assert "one tensor" in engine.ready.placement[0][0]
    assert_answers(engine)


def test_an_output_layer_of_its_own_is_used(folder: Path, tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].roll(1, dims=0)  # token i now scores what i - 1 scored
    save_file(tensors, folder / "model.safetensors")
    engine = load(folder)
    assert engine.ready.weights_bytes == load(CHATGLM).ready.weights_bytes + tensors["lm_head.weight"].nbytes
    case = tiny_cases(CHATGLM)[0]
    assert generate(engine, [case], ignore_eos=True)[case.name][0] == (case.greedy_tokens[0] + 1) % 96


def test_an_untied_llama_needs_its_output_layer(tmp_path: Path) -> None:
    shutil.copy(LLAMA / "config.json", tmp_path)
    tensors = load_file(LLAMA / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert "lm_head.weight" in complaint_of(tmp_path)
    set_config(tmp_path, tie_word_embeddings=True)
    load(tmp_path)
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    set_config(tmp_path, tie_word_embeddings=False)
    assert_answers(load(tmp_path), LLAMA)


def test_dummy_weights_need_only_a_config_and_follow_the_seed(folder: Path) -> None:
    cases = tiny_cases(CHATGLM)
    first, again, other = (load(folder, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    tokens = generate(first, cases, ignore_eos=True)
    assert generate(again, cases, ignore_eos=True) == tokens
    assert generate(other, cases, ignore_eos=True) != tokens
    assert all(torch.isfinite(parameter).all() for _, parameter in first.runner.model.named_parameters())


def test_where_everything_lies_is_told() -> None:
    told: list[str] = []
    engine = EngineCore(make_config(CHATGLM), progress=told.append)
    ready = engine.describe()
    assert any("model.safetensors" in line and "1 of 1" in line for line in told)
    assert [row[1] for row in ready.placement] == ["cpu"] * 3
    assert "39 blocks of 16 tokens" in ready.placement[2][0] and ready.num_kv_tokens == 39 * 16
    assert ready.kv_cache_bytes == 40 * 16 * 2 * 2 * 32 * 4  # blocks, tokens, K and V, layers, hidden, bytes
    assert ready.weights_bytes == sum(t.nbytes for name, t in load_file(CHATGLM / "model.safetensors").items() if name != "lm_head.weight")


def make_config(folder: Path) -> loading.EngineConfig:
    return loading.EngineConfig(model=str(folder), device="cpu", num_kv_blocks=40)


# --- files that are wrong ---------------------------------------------------------------------------------------------------------


def test_no_weights_at_all(folder: Path) -> None:
    message = complaint_of(folder)
    assert "no weights" in message and "pytorch_model*.bin" in message and str(folder) in message


def test_a_missing_shard_is_named(folder: Path, tensors: Tensors) -> None:
    files = write_released_layout(folder, tensors)
    files[1].unlink()
    message = complaint_of(folder)
    assert files[1].name in message and "1 of 3" in message


def test_a_missing_shard_without_an_index_is_noticed(folder: Path, tensors: Tensors) -> None:
    files = write_released_layout(folder, tensors)
    (folder / "pytorch_model.bin.index.json").unlink()
    files[1].unlink()
    message = complaint_of(folder)
    assert "lacks the weights of" in message and files[0].name in message


@pytest.mark.parametrize("kept", [0, 100, 0.5, -10])
@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_a_truncated_shard_is_named(folder: Path, tensors: Tensors, layout: str, kept: float) -> None:
    if layout == "bin":
        path = write_released_layout(folder, tensors, shards=1)[0]
    else:
        save_file(tensors, path := folder / "model.safetensors")
    size = path.stat().st_size
    os.truncate(path, int(size * kept) if 0 < kept < 1 else int(kept) % size)
    message = complaint_of(folder)
    assert path.name in message and "download it again" in message


def test_a_broken_index(folder: Path, tensors: Tensors) -> None:
    write_released_layout(folder, tensors)
    for broken in ("{", "[]", '{"weight_map": 3}', "\udcff".encode("utf-8", "surrogateescape")):
        path = folder / "pytorch_model.bin.index.json"
        path.write_bytes(broken) if isinstance(broken, bytes) else path.write_text(broken)
        assert path.name in complaint_of(folder)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    mark = tmp_path_factory.mktemp("mark") / "was here"
    path = folder / "pytorch_model.bin"
    content = {"transformer.word_embeddings.weight": Malicious(mark)}
    torch.save(content, path) if how == "torch.save" else path.write_bytes(pickle.dumps(content))
    message = complaint_of(folder)
    assert path.name in message
    assert not mark.exists(), "code from the file ran"


def test_a_file_that_holds_no_tensors(folder: Path) -> None:
    torch.save([1, 2, 3], folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in complaint_of(folder)
    torch.save({"lm_head.weight": "text"}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in complaint_of(folder)


def test_a_tensor_of_another_shape(folder: Path, tensors: Tensors) -> None:
    name = "transformer.layers.1.mlp.dense_h_to_4h.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "model.safetensors")
    message = complaint_of(folder)
    assert name in message and "[63, 32]" in message and "[64, 32]" in message


def test_a_fused_tensor_of_another_shape(folder: Path, tensors: Tensors) -> None:
    name = "transformer.layers.0.attention.query_key_value.weight"
    tensors[name] = tensors[name][:-3].clone()
    save_file(tensors, folder / "model.safetensors")
    assert name in complaint_of(folder)


@pytest.mark.parametrize("name", ["transformer.layers.1.attention.dense.bias", "transformer.word_embeddings.weight"])
def test_a_missing_parameter(folder: Path, tensors: Tensors, name: str) -> None:
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    assert "lacks the weights of" in complaint_of(folder)


def test_an_unknown_tensor(folder: Path, tensors: Tensors) -> None:
    tensors["transformer.layers.2.mlp.dense_h_to_4h.bias"] = torch.zeros(64)
    save_file(tensors, folder / "model.safetensors")
    message = complaint_of(folder)
    assert "transformer.layers.2.mlp.dense_h_to_4h.bias" in message and "config.json" in message


# --- configs that are wrong -------------------------------------------------------------------------------------------------------


def test_an_unknown_family(folder: Path) -> None:
    set_config(folder, model_type="bert")
    message = complaint_of(folder)
    assert "'bert'" in message and "chatglm" in message


def test_chatglm2_is_told_from_the_first_generation(shared: Path) -> None:
    for version in ("v2", "v3"):
        assert "ChatGLM2" in complaint_of(shared / "golden" / version / "small")


def test_chatglm2s_config_is_refused_by_its_keys(folder: Path) -> None:
    set_config(folder, multi_query_attention=True, original_rope=True, rmsnorm=True)
    assert "ChatGLM2" in complaint_of(folder)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"quantization_bit": 3}, "quantization_bit is 3"),
        ({"quantization_bit": [4]}, "config.json"),
        ({"pre_seq_len": "128"}, "pre_seq_len"),
        ({"position_encoding_2d": False}, "two-dimensional"),
        ({"num_layers": None}, "num_layers"),
        ({"num_attention_heads": 3}, "heads"),
        ({"vocab_size": "many"}, "vocab_size must be a positive whole number"),
        ({"num_layers": 0}, "num_layers must be"),
        ({"hidden_size": []}, "config.json"),
    ],
)
def test_configs_that_cannot_be_served(folder: Path, changes: dict[str, Any], words: str) -> None:
    set_config(folder, **changes)
    assert words in complaint_of(folder, load_format="dummy")


def test_no_folder_no_config_and_a_longer_context_than_the_models(tmp_path: Path) -> None:
    assert "no model folder" in complaint_of(tmp_path / "nowhere")
    assert "no config.json" in complaint_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in complaint_of(tmp_path)
    assert "256" in complaint_of(CHATGLM, max_model_len=257)


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    message = complaint_of(CHATGLM, device="cuda")
    assert "no GPU" in message and "--device cpu" in message
    assert load(CHATGLM, device="auto").ready.device == "cpu"


# --- memory -----------------------------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_say_how_much_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = load(CHATGLM).ready.weights_bytes
    monkeypatch.setattr(memory, "available_bytes", lambda config, device: needed - 1000)
    with pytest.raises(NotEnoughMemoryError, match="missing") as caught:
        load(CHATGLM)
    assert caught.value.missing_bytes == 1000
    assert "GPU" not in str(caught.value)
    with pytest.raises(NotEnoughMemoryError, match="Nothing is ever moved to the CPU"):
        memory.check_room_for_weights(needed, make_config(CHATGLM), torch.device("cuda"))
    monkeypatch.setattr(memory, "available_bytes", lambda config, device: needed)
    memory.check_room_for_weights(needed, make_config(CHATGLM), torch.device("cpu"))


def test_a_context_that_does_not_fit_says_how_much_is_missing() -> None:
    per_block = 16 * 2 * 2 * 32 * 4
    needed = (256 // 16 + 1) * per_block  # one context and the null block
    with pytest.raises(NotEnoughMemoryError, match="--max-model-len") as caught:
        load(CHATGLM, num_kv_blocks=None, kv_cache_memory_bytes=needed - 1)
    assert caught.value.missing_bytes == 1
    assert load(CHATGLM, num_kv_blocks=None, kv_cache_memory_bytes=needed).ready.num_kv_blocks == 16
    load(CHATGLM, num_kv_blocks=None, kv_cache_memory_bytes=needed - 1, max_model_len=240)


def test_too_few_blocks_for_one_context_are_refused() -> None:
    """Or its request would wait for ever."""
    assert "--max-model-len" in complaint_of(CHATGLM, NotEnoughMemoryError, num_kv_blocks=16)
    load(CHATGLM, num_kv_blocks=17)


def test_a_pool_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda config, device: 10**6)
    with pytest.raises(NotEnoughMemoryError, match="--kv-cache-memory-bytes") as caught:
        load(CHATGLM, num_kv_blocks=None, kv_cache_memory_bytes=10**6 + 5)
    assert caught.value.missing_bytes == 5


def test_a_llama_part_of_another_size(tmp_path: Path) -> None:
    """Its parts are stacked, where a wrong size could hide in a neighbour."""
    shutil.copy(LLAMA / "config.json", tmp_path)
    tensors = load_file(LLAMA / "model.safetensors")
    for part, rows in (("k_proj", 8), ("k_proj", 24), ("q_proj", 40)):
        name = f"model.layers.1.self_attn.{part}.weight"
        save_file(tensors | {name: torch.zeros(rows, 48)}, tmp_path / "model.safetensors")
        message = complaint_of(tmp_path)
        assert name in message and f"[{rows}, 48]" in message


def test_running_out_while_loading_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")

    monkeypatch.setattr(loading, "load_weights", out_of_memory)
    message = complaint_of(CHATGLM, NotEnoughMemoryError)
    assert "20.00 MiB" in message and "--max-num-seqs" in message
