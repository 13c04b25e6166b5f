"""A tiny Llama as GGUF, written on the spot: the conversion is tested from a clone alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ Ġ", "Ġ w", "2 0", "20 2"]  # the last two can never apply: digits stand alone


@dataclass
class TinyGguf:
    """What went into the file, in transformers' layout and names, so that a test can compare."""

    path: Path
    weights: dict[str, np.ndarray] = field(default_factory=dict)


@pytest.fixture
def write_tiny_gguf(tmp_path: Path) -> Callable[..., TinyGguf]:
    def write(**changes: Any) -> TinyGguf:
        return _write(tmp_path / "tiny.gguf", **changes)

    return write


def _write(path: Path, *, architecture: str = "llama", pre: str = "smollm", tied: bool = True, extra_tensor: str | None = None) -> TinyGguf:
    tiny, rng = TinyGguf(path), np.random.default_rng(0)
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def add(gguf_name: str, name: str, *shape: int, heads: int = 0, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> None:
        weight = rng.standard_normal(shape, dtype=np.float32)
        tiny.weights[name] = weight
        if heads:  # as llama.cpp's converter interleaves the two halves of a head
            weight = weight.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        packed = np.ascontiguousarray(weight) if kind == GGMLQuantizationType.F32 else quantize(weight, kind)
        writer.add_tensor(gguf_name, packed, raw_dtype=kind)

    add("token_embd.weight", "model.embed_tokens.weight", len(tokens), HIDDEN, kind=GGMLQuantizationType.Q8_0)
    add("output_norm.weight", "model.norm.weight", HIDDEN)
    if not tied:
        add("output.weight", "lm_head.weight", len(tokens), HIDDEN)
    if extra_tensor:
        add(extra_tensor, extra_tensor, HIDDEN)
    for layer in range(LAYERS):
        gguf, ours = f"blk.{layer}.", f"model.layers.{layer}."
        width = HIDDEN // HEADS * KV_HEADS
        add(gguf + "attn_norm.weight", ours + "input_layernorm.weight", HIDDEN)
        add(gguf + "attn_q.weight", ours + "self_attn.q_proj.weight", HIDDEN, HIDDEN, heads=HEADS)
        add(gguf + "attn_k.weight", ours + "self_attn.k_proj.weight", width, HIDDEN, heads=KV_HEADS)
        add(gguf + "attn_v.weight", ours + "self_attn.v_proj.weight", width, HIDDEN)
        add(gguf + "attn_output.weight", ours + "self_attn.o_proj.weight", HIDDEN, HIDDEN)
        add(gguf + "ffn_norm.weight", ours + "post_attention_layernorm.weight", HIDDEN)
        add(gguf + "ffn_gate.weight", ours + "mlp.gate_proj.weight", INNER, HIDDEN)
        add(gguf + "ffn_up.weight", ours + "mlp.up_proj.weight", INNER, HIDDEN)
        add(gguf + "ffn_down.weight", ours + "mlp.down_proj.weight", HIDDEN, INNER, kind=GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tiny
