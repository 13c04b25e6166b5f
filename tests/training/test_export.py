"""A trained run becomes a folder that the server loads, and computes with as the training code does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from glmserve.llm import LLM
from tests.engine.golden import all_logits
from training.export import WEIGHTS, export
from training.model import ChatGLM, Shape
from training.packing import to_batch
from training.prepare import TOKENIZER
from training.quantize import dequantized_state, quantize_rows, quantized_state
from training.train import save_weights
from training.vocabulary import PIECES, Vocabulary


def test_rows_are_rounded_to_their_own_127th() -> None:
    weight = torch.tensor([[12.7, -0.25, 0.04, 0.0], [-254.0, 1.0, 3.0, 5.0]])
    levels, scale = quantize_rows(weight)
    assert scale.tolist() == pytest.approx([0.1, 2.0], rel=1e-3)
    assert levels.tolist() == [[127, -2, 0, 0], [-127, 0, 2, 2]]  # halves go to the even neighbour


def test_rounding_stays_within_half_a_step() -> None:
    torch.manual_seed(0)
    state = {"layers.0.mlp.dense_h_to_4h.weight": torch.randn(20, 30).half().float(), "final_layernorm.bias": torch.randn(4)}
    rounded = quantized_state(state)
    assert {name: tensor.dtype for name, tensor in rounded.items()} == {
        "layers.0.mlp.dense_h_to_4h.weight": torch.int8,
        "layers.0.mlp.dense_h_to_4h.weight_scale": torch.float16,
        "final_layernorm.bias": torch.float16,
    }
    back = dequantized_state(rounded)
    assert back.keys() == state.keys()
    step = rounded["layers.0.mlp.dense_h_to_4h.weight_scale"].float()[:, None]
    name = "layers.0.mlp.dense_h_to_4h.weight"
    assert ((back[name] - state[name]).abs() <= 0.56 * step).all()  # the level was found in float16


@pytest.mark.parametrize("float16", [False, True])
def test_the_server_computes_what_the_training_code_computes(demo: Path, vocabulary: Vocabulary, tmp_path: Path, float16: bool) -> None:
    run, data, out = tmp_path / "run", tmp_path / "data", tmp_path / "out"
    run.mkdir()
    data.mkdir()
    torch.manual_seed(1)
    model = ChatGLM(Shape(hidden_size=64, num_heads=2, inner_size=128, num_layers=2)).eval()
    save_weights(model.state_dict(), run, part_bytes=2**20)
    assert len(list(run.glob("weights-*.npz"))) > 1
    (run / "training.json").write_text(json.dumps({"shape": model.shape.as_dict()}))
    (data / TOKENIZER).write_bytes((demo / TOKENIZER).read_bytes())
    (data / PIECES).write_text(json.dumps(vocabulary.pieces))
    export(run, data, out, float16=float16)
    assert (out / WEIGHTS).stat().st_mode & 0o444 == 0o444

    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state if float16 else dequantized_state(quantized_state(state)))
    prompt = [*vocabulary.encode_prompt("写一首诗"), *vocabulary.encode("春眠不觉晓")]
    ids = torch.tensor([prompt])
    batch = to_batch(ids, torch.zeros_like(ids), torch.full_like(ids, prompt.index(vocabulary.sop)))
    with torch.no_grad():
        expected = model.logits(model(batch.ids, batch.positions, batch.mask))[0]
    llm = LLM(str(out), device="cpu", dtype="float32", max_num_seqs=1)
    assert torch.from_numpy(all_logits(llm.engine, prompt)).sub(expected).abs().max() < 1e-4
