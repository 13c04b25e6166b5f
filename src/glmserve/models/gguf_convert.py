"""From one GGUF file to a model folder as transformers writes it: config.json, model.safetensors and tokenizer files.

Only plain Llama layers with a SmolLM tokenizer are understood, which is what the built-in model is; anything else is refused
rather than guessed.  Weights are stored as float32: d * q + m of a 4-bit block needs more bits than float16 has, so only
float32 keeps what the file says, a CPU serves float32 anyway, and a memory-mapped float32 file loads without a cast.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

from glmserve.models.gguf_tokenizer import gguf_tokenizer, gguf_tokenizer_config
from glmserve.protocol.errors import ModelLoadError

Array = npt.NDArray[np.float32]

OUTSIDE_LAYERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INSIDE_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(source: Path, folder: Path, on_tensor: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write the model in `source` into the existing empty `folder`; `on_tensor(done, total)` is called once a tensor.

    Raises ModelLoadError for a file that is no GGUF or holds another architecture or tokenizer, OSError where writing fails.
    """
    metadata, reader = _open(source)
    config = llama_config(metadata, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")})
    gguf_tokenizer(metadata).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", gguf_tokenizer_config(metadata))
    save_file(_weights(reader, config, on_tensor), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # as readable as the files beside it; safetensors writes 0600


def llama_config(metadata: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """config.json for a GGUF's metadata.  Raises ModelLoadError for another architecture or a missing key."""
    if metadata.get("general.architecture") != "llama":
        raise ModelLoadError(f"the GGUF file holds a {metadata.get('general.architecture')!r} model; only 'llama' can be converted.")
    try:
        num_heads = metadata["llama.attention.head_count"]
        hidden_size = metadata["llama.embedding_length"]
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
            "hidden_size": hidden_size,
            "intermediate_size": metadata["llama.feed_forward_length"],
            "num_hidden_layers": metadata["llama.block_count"],
            "num_attention_heads": num_heads,
            "num_key_value_heads": metadata.get("llama.attention.head_count_kv", num_heads),
            "head_dim": metadata.get("llama.attention.key_length", hidden_size // num_heads),
            "max_position_embeddings": metadata["llama.context_length"],
            "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
            "rope_theta": _shortest(metadata.get("llama.rope.freq_base", 10000.0)),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": tied,
            "torch_dtype": "float32",
            "use_cache": True,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": _eos_token_ids(metadata),
            "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        }
    except KeyError as error:
        raise ModelLoadError(f"the GGUF file lacks {error}. Download it again.") from error


def unpermute(weight: Array, num_heads: int) -> Array:
    """Rows of a q or k projection, [num_heads * head_dim, hidden_size], from GGUF's order back to half rotation.

    GGUF stores the two partners of a rotation side by side (0, half, 1, half + 1, ...); transformers' Llama, and this server,
    rotate the first half of a head against the second.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _open(source: Path) -> tuple[dict[str, Any], GGUFReader]:
    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, UnicodeDecodeError) as error:  # what the reader raises for a wrong or a cut file
        raise ModelLoadError(f"{source} is not a whole GGUF file: {error}. Download it again.") from error
    return {name: field.contents() for name, field in reader.fields.items()}, reader


def _weights(reader: GGUFReader, config: dict[str, Any], on_tensor: Callable[[int, int], None]) -> dict[str, Array]:
    weights = {}
    for done, tensor in enumerate(reader.tensors, 1):
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if ".attn_q." in tensor.name:
            weight = unpermute(weight, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            weight = unpermute(weight, config["num_key_value_heads"])
        weights[_name(tensor.name)] = weight
        on_tensor(done, len(reader.tensors))
    return weights


def _name(gguf_name: str) -> str:
    if gguf_name in OUTSIDE_LAYERS:
        return OUTSIDE_LAYERS[gguf_name]
    match gguf_name.split("."):
        case ["blk", layer, part, "weight"] if part in INSIDE_LAYER:
            return f"model.layers.{layer}.{INSIDE_LAYER[part]}.weight"
    raise ModelLoadError(f"the GGUF file holds a tensor {gguf_name!r}, which plain Llama layers do not have; it cannot be converted.")


def _eos_token_ids(metadata: dict[str, Any]) -> list[int]:
    """What ends an answer: the chat's end of turn, and the end of a document that plain completions run into."""
    tokens = metadata["tokenizer.ggml.tokens"]
    found = [metadata["tokenizer.ggml.eos_token_id"]]
    if "<|endoftext|>" in tokens:
        found.append(tokens.index("<|endoftext|>"))
    return list(dict.fromkeys(found))


def _shortest(value: float) -> float:
    """1e-05 rather than 9.999999747378752e-06: GGUF keeps float32, config.json the decimal it came from."""
    return float(str(np.float32(value)))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
