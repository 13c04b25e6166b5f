"""A GGUF file becomes a model folder that the rest of the server reads as any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from glmserve.models.catalog import read_spec
from glmserve.models.gguf_convert import convert_gguf, unpermute
from glmserve.protocol.errors import ModelLoadError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    return folder


def test_the_folder_is_read_as_a_llama(write_tiny_gguf, folder):
    convert_gguf(write_tiny_gguf().path, folder)
    spec = read_spec(folder)
    assert (spec.family, spec.attention, spec.num_layers, spec.hidden_size, spec.head_dim) == ("llama", "causal", 2, 64, 16)
    assert (spec.num_heads, spec.num_kv_heads, spec.intermediate_size, spec.max_model_len) == (4, 2, 96, 128)
    assert (spec.norm_epsilon, spec.rope_theta, spec.torch_dtype) == (1e-5, 100000.0, "float32")
    assert spec.tie_word_embeddings


def test_an_answer_ends_with_its_turn_or_with_the_document(write_tiny_gguf, folder):
    convert_gguf(write_tiny_gguf().path, folder)
    assert read_spec(folder).eos_token_ids == (2, 0)  # <|im_end|>, <|endoftext|>
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_every_weight_arrives_under_its_name_in_its_order(write_tiny_gguf, folder):
    tiny = write_tiny_gguf()
    convert_gguf(tiny.path, folder)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == tiny.weights.keys()
    for name, expected in tiny.weights.items():
        # 8 and 4 bits keep this much of a standard normal; unquantized weights must not move at all
        tolerance = 0.02 if "embed" in name else 0.3 if "down_proj" in name else 0.0
        assert weights[name].dtype == np.float32
        np.testing.assert_allclose(weights[name], expected, rtol=0, atol=tolerance, err_msg=name)


def test_a_head_of_its_own_is_kept(write_tiny_gguf, folder):
    convert_gguf(write_tiny_gguf(tied=False).path, folder)
    assert not read_spec(folder).tie_word_embeddings
    assert "lm_head.weight" in load_file(folder / "model.safetensors")


def test_half_rotation_of_unpermuted_rows_equals_neighbour_rotation_of_gguf_rows():
    rng, heads, dim, position = np.random.default_rng(1), 3, 8, 5
    query, key = rng.standard_normal((2, heads * dim, 16), dtype=np.float32)
    hidden = rng.standard_normal(16, dtype=np.float32)
    angle = position / 10000 ** (np.arange(dim // 2) / (dim // 2))

    def neighbours(rows):  # GGUF: (0, 1), (2, 3), ...
        even, odd = (rows @ hidden).reshape(heads, dim // 2, 2).transpose(2, 0, 1)
        return np.concatenate([even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)], axis=1)

    def halves(rows):  # transformers: (0, half), (1, half + 1), ...
        first, second = (rows @ hidden).reshape(heads, 2, dim // 2).transpose(1, 0, 2)
        return np.concatenate([first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle)], axis=1)

    for rows in (query, key):
        np.testing.assert_allclose(halves(unpermute(rows, heads)), neighbours(rows), rtol=1e-5)


def test_progress_counts_up_to_all_tensors(write_tiny_gguf, folder):
    seen: list[tuple[int, int]] = []
    convert_gguf(write_tiny_gguf().path, folder, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 20) for done in range(1, 21)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "gpt2"}, "'gpt2' model; only 'llama'"),
        ({"pre": "llama-bpe"}, "pre-tokenizer 'llama-bpe'"),
        ({"extra_tensor": "rope_freqs.weight"}, "rope_freqs.weight"),
    ],
)
def test_what_would_be_converted_wrongly_is_refused(write_tiny_gguf, folder, change, says):
    with pytest.raises(ModelLoadError, match=says):
        convert_gguf(write_tiny_gguf(**change).path, folder)


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_a_cut_file_is_named(write_tiny_gguf, folder, size):
    path = write_tiny_gguf().path
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelLoadError, match=r"tiny.gguf is not a whole GGUF file"):
        convert_gguf(path, folder)
