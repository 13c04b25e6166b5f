"""Writes the fixture model llama-tiny and what transformers' Llama says of it: `python tests/models/llama_fixture.py`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

FIXTURE = Path(__file__).parents[1] / "fixtures/models/llama-tiny"
NUM_TOKENS = 20
TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
    "model_type": "llama",
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 96,
}
PROMPTS = {
    "one token": [1],
    "short": [1, 20, 21],
    "block": [1, *range(10, 25)],
    "block and one": [1, *range(10, 26)],
    "longer": [1, *((7 * i * i + 3) % 88 for i in range(75))],
}


def weights(seed: int) -> dict[str, np.ndarray]:
    """Noise, scaled so that attention is sharp and the likeliest token stands out."""
    rng = np.random.default_rng(seed)
    hidden, inner, head = TINY["hidden_size"], TINY["intermediate_size"], TINY["hidden_size"] // TINY["num_attention_heads"]
    kv = head * TINY["num_key_value_heads"]

    def noise(rows: int, columns: int, gain: float) -> np.ndarray:
        return rng.normal(0.0, gain / columns**0.5, (rows, columns)).astype(np.float16).astype(np.float32)

    def norm() -> np.ndarray:
        return rng.normal(1.0, 0.1, hidden).astype(np.float16).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": noise(TINY["vocab_size"], hidden, 5.0),
        "model.norm.weight": norm(),
        "lm_head.weight": noise(TINY["vocab_size"], hidden, 3.0),
    }
    for layer in range(TINY["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        tensors |= {name + "input_layernorm.weight": norm(), name + "post_attention_layernorm.weight": norm()}
        for part, rows, columns, gain in (
            ("self_attn.q_proj", hidden, hidden, 2.0),
            ("self_attn.k_proj", kv, hidden, 2.0),
            ("self_attn.v_proj", kv, hidden, 1.5),
            ("self_attn.o_proj", hidden, hidden, 1.5),
            ("mlp.gate_proj", inner, hidden, 1.5),
            ("mlp.up_proj", inner, hidden, 1.5),
            ("mlp.down_proj", hidden, inner, 1.5),
        ):
            tensors[f"{name}{part}.weight"] = noise(rows, columns, gain)
    return tensors


def transformers_answers(folder: Path) -> dict[str, Any]:
    """Greedy tokens and first logits of transformers' own Llama, the whole sequence computed anew for each token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of no concern here
        from transformers import LlamaForCausalLM  # a dev dependency that takes seconds to import
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        answers = {}
        for name, prompt in PROMPTS.items():
            ids, rows = list(prompt), []
            for _ in range(NUM_TOKENS):
                with torch.inference_mode():
                    rows.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1])
                ids.append(int(rows[-1].argmax()))
            best = torch.stack(rows).topk(2).values
            answers[name] = {
                "prompt": prompt,
                "tokens": ids[-NUM_TOKENS:],
                "logits": rows[0].tolist(),
                "margin": float((best[:, 0] - best[:, 1]).min()),
            }
    return answers


def write_fixture(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY, indent=1) + "\n")
    for seed in range(100):
        save_file(weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
        answers = transformers_answers(folder)
        if min(answer["margin"] for answer in answers.values()) > 0.02 and min(len(set(a["tokens"])) for a in answers.values()) > 5:
            break  # float noise cannot decide a token, and answers are not one token over and over
    lines = [
        f"{json.dumps(name)}: {json.dumps({'prompt': a['prompt'], 'tokens': a['tokens'], 'logits': [round(x, 5) for x in a['logits']]})}"
        for name, a in answers.items()
    ]
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write_fixture(FIXTURE)
