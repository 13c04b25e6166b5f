"""The training model against recorded logits of the original classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.model import ChatGLM, Shape
from training.packing import pack, to_batch


def load(folder: Path) -> ChatGLM:
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": config["hidden_size"], "num_heads": config["num_attention_heads"], "inner_size": config["inner_hidden_size"]}
    model = ChatGLM(Shape(config["vocab_size"], **sizes, num_layers=config["num_layers"]))
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items() if "inv_freq" not in name})
    return model.eval()


@pytest.mark.parametrize("case", ["small/gmask_n17", "small/gmask_n130", "small/answer_prefix_after_bos", "wide/gmask_n5"])
def test_logits_are_those_of_the_original(shared: Path, case: str) -> None:
    name, case_name = case.split("/")
    folder = shared / "golden" / "v1" / name
    if not (folder / "cases" / f"{case_name}.npz").exists():
        pytest.skip(f"no case {case}")
    recorded = np.load(folder / "cases" / f"{case_name}.npz")
    ids, context = torch.from_numpy(recorded["input_ids"])[None], int(recorded["context_length"])
    batch = to_batch(ids, torch.zeros_like(ids), torch.full_like(ids, context))
    assert batch.positions[:, 0].tolist() == recorded["position_ids"].tolist()
    model = load(folder)
    with torch.no_grad():
        logits = model.logits(model(batch.ids, batch.positions, batch.mask))[0, -1]
    assert np.abs(logits.numpy() - recorded["logits_last"]).max() < 3e-4


@torch.no_grad()
def test_conversations_in_one_row_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = ChatGLM(Shape(40, hidden_size=32, num_heads=2, inner_size=64, num_layers=2)).eval()
    pairs = [([9, 8, 7, 5, 6], [11, 12, 13]), ([21, 22, 5, 6], [23, 24, 25, 26])]
    together = to_batch(*pack(pairs, row=16).tensors(torch.device("cpu")))
    hidden = model(together.ids, together.positions, together.mask)[0]
    at = 0
    for pair in pairs:
        alone = to_batch(*pack([pair], row=len(pair[0]) + len(pair[1])).tensors(torch.device("cpu")))
        expected = model(alone.ids, alone.positions, alone.mask)[0]
        assert torch.allclose(hidden[at : at + len(expected)], expected, atol=1e-5)
        at += len(expected)


def test_only_answers_are_predicted() -> None:
    prompt, answer = [9, 8, 5, 6], [11, 12, 2]
    batch = to_batch(*pack([(prompt, answer)], row=8).tensors(torch.device("cpu")))
    assert batch.targets[0].tolist() == [-100, -100, -100, 11, 12, 2, -100, -100]
