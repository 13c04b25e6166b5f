"""ChatGLM-6B in plain numpy, written from the published facts alone: one explicit attention mask, the whole sequence each time, no cache.

It shares no code with the product and is slow on purpose.  `python tests/models/chatglm_reference.py` writes the fixture model again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

FIXTURE = Path(__file__).parents[1] / "fixtures/models/chatglm-tiny"
Weights = dict[str, np.ndarray]


class ChatGLMReference:
    """A model folder's config and weights in float64."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights: Weights = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
        self.num_heads = self.config["num_attention_heads"]
        self.head_dim = self.config["hidden_size"] // self.num_heads

    def logits(self, ids: list[int]) -> np.ndarray:
        """[len(ids), vocab_size]: scores of what follows each token, were the text that far all there is behind the border."""
        visible, positions = self.visible(ids), self.positions(ids)
        x = self.weights["transformer.word_embeddings.weight"][ids]
        for layer in range(self.config["num_layers"]):
            x = self._block(x, f"transformer.layers.{layer}.", visible, positions)
        x = self._layer_norm(x, "transformer.final_layernorm")
        return x @ self.weights["lm_head.weight"].T

    def greedy(self, ids: list[int], count: int) -> tuple[list[int], np.ndarray]:
        """`count` tokens, whatever they are, and their logits [count, vocab_size]."""
        ids, rows = list(ids), []
        for _ in range(count):
            rows.append(self.logits(ids)[-1])
            ids.append(int(rows[-1].argmax()))
        return ids[-count:], np.array(rows)

    def visible(self, ids: list[int]) -> np.ndarray:
        """bool [len, len]: may this row see that column?  Keys before the first <sop> always, the others causally."""
        border = ids.index(self.config["bos_token_id"])
        row, column = np.indices((len(ids), len(ids)))
        return (column < border) | ((row >= border) & (column <= row))

    def positions(self, ids: list[int]) -> np.ndarray:
        """[2, len]"""
        border = ids.index(self.config["bos_token_id"])
        gmask, mask = self.config["gmask_token_id"], self.config["mask_token_id"]
        target = ids.index(gmask if gmask in ids else mask)
        answer = len(ids) - border
        return np.array([[*range(border), *[target] * answer], [*[0] * border, *range(1, answer + 1)]])

    def _block(self, x: np.ndarray, name: str, visible: np.ndarray, positions: np.ndarray) -> np.ndarray:
        alpha = math.sqrt(2 * 28)
        a = self._layer_norm(x, name + "input_layernorm")
        x = alpha * a + self._attention(a, name + "attention.", visible, positions)
        b = self._layer_norm(x, name + "post_attention_layernorm")
        inner = self._linear(b, name + "mlp.dense_h_to_4h")
        inner = 0.5 * inner * (1 + np.tanh(0.7978845608028654 * inner * (1 + 0.044715 * inner * inner)))
        return alpha * b + self._linear(inner, name + "mlp.dense_4h_to_h")

    def _attention(self, x: np.ndarray, name: str, visible: np.ndarray, positions: np.ndarray) -> np.ndarray:
        merged = self._linear(x, name + "query_key_value").reshape(len(x), self.num_heads, 3 * self.head_dim)
        query, key, value = np.split(merged, 3, axis=-1)
        query, key = self._rotate(query, positions), self._rotate(key, positions)
        mixed = np.empty_like(value)
        for head in range(self.num_heads):
            scores = query[:, head] @ key[:, head].T / math.sqrt(self.head_dim)
            scores = np.where(visible, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, head] = weights / weights.sum(axis=1, keepdims=True) @ value[:, head]
        return self._linear(mixed.reshape(len(x), -1), name + "dense")

    def _rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        half, quarter = self.head_dim // 2, self.head_dim // 4
        frequencies = (1.0 / 10000.0 ** (np.arange(0, half, 2) / half)).astype(np.float16).astype(np.float64)
        out = np.empty_like(x)
        for axis in (0, 1):
            part = x[..., axis * half : (axis + 1) * half]
            angle = positions[axis][:, None, None] * frequencies
            first, second = part[..., :quarter], part[..., quarter:]
            turned = (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle))
            out[..., axis * half : (axis + 1) * half] = np.concatenate(turned, axis=-1)
        return out

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def _layer_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layernorm_epsilon"])
        return scaled * self.weights[name + ".weight"] + self.weights[name + ".bias"]


# --- the fixture ------------------------------------------------------------------------------------------------------------------

TINY = {  # the keys of the released config.json, with small numbers
    "architectures": ["ChatGLMModel"],
    "bos_token_id": 94,
    "eos_token_id": 95,
    "gmask_token_id": 91,
    "hidden_size": 32,
    "inner_hidden_size": 64,
    "layernorm_epsilon": 1e-05,
    "mask_token_id": 90,
    "max_sequence_length": 256,
    "model_type": "chatglm",
    "num_attention_heads": 2,
    "num_layers": 2,
    "pad_token_id": 3,
    "position_encoding_2d": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 96,
}
TINY_PROMPTS = {
    "shortest": [91, 94],
    "short": [5, 17, 91, 94],
    "block": [*range(10, 24), 91, 94],
    "longer": [(7 * i * i + 3) % 88 for i in range(75)] + [91, 94],
    "mask in the middle": [8, 9, 90, 10, 11, 94],
    "both masks": [8, 90, 9, 91, 94],
    "answer begun": [20, 21, 22, 91, 94, 30, 31, 32],
    "second sop": [20, 91, 94, 30, 94, 31],
}
NUM_TOKENS = 20


def tiny_weights(config: dict[str, Any], seed: int) -> Weights:
    """Noise, scaled so that attention is sharp and the likeliest token stands out; stored as float16 can hold it."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["inner_hidden_size"]

    def noise(*shape: int, scale: float) -> np.ndarray:
        return rng.normal(0.0, scale, shape).astype(np.float16).astype(np.float32)

    weights = {"transformer.word_embeddings.weight": noise(config["vocab_size"], hidden, scale=0.6)}
    for layer in range(config["num_layers"]):
        name = f"transformer.layers.{layer}."
        for part, rows, columns, scale in (
            ("attention.query_key_value", 3 * hidden, hidden, 2.5),
            ("attention.dense", hidden, hidden, 8.0),
            ("mlp.dense_h_to_4h", inner, hidden, 1.5),
            ("mlp.dense_4h_to_h", hidden, inner, 8.0),
        ):
            weights[f"{name}{part}.weight"] = noise(rows, columns, scale=scale / math.sqrt(columns))
            weights[f"{name}{part}.bias"] = noise(rows, scale=0.3)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}{norm}.weight"] = 1 + noise(hidden, scale=0.1)
            weights[f"{name}{norm}.bias"] = noise(hidden, scale=0.1)
    weights["transformer.final_layernorm.weight"] = 1 + noise(hidden, scale=0.1)
    weights["transformer.final_layernorm.bias"] = noise(hidden, scale=0.1)
    weights["lm_head.weight"] = weights["transformer.word_embeddings.weight"].copy()
    return weights


def write_fixture(folder: Path) -> None:
    """Model and expected answers.  Greedy choices must be clear, or float noise would decide a test."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY, indent=1) + "\n")
    save_file(tiny_weights(TINY, seed=15), folder / "model.safetensors")
    reference, expected = ChatGLMReference(folder), {}
    for name, prompt in TINY_PROMPTS.items():
        tokens, logits = reference.greedy(prompt, NUM_TOKENS)
        best = np.sort(logits, axis=1)
        margin = float((best[:, -1] - best[:, -2]).min())
        print(f"{name}: margin {margin:.3f}, std {logits.std():.2f}, {len(set(tokens))} different tokens: {tokens}")
        assert margin > 5e-3
        expected[name] = {"prompt": prompt, "tokens": tokens, "logits": np.round(logits[0], 5).tolist()}
    lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in expected.items()]
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write_fixture(FIXTURE)
