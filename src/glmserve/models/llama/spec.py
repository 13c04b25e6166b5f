"""Facts of Llama-shaped models, read from a config.json as transformers writes it."""

from __future__ import annotations

from typing import Any

from glmserve.models.spec import ModelSpec


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """Shapes and special ids.  Raises KeyError for a missing key, ValueError for a variant this code would get wrong."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ValueError("rope_scaling is not supported yet.")
    if config.get("hidden_act", "silu") != "silu" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("only plain Llama layers are supported: silu, no attention_bias, no mlp_bias.")
    num_heads = config["num_attention_heads"]
    eos = config.get("eos_token_id")
    return ModelSpec(
        family="llama",
        attention="causal",
        rotary="1d",
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads", num_heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_model_len=config.get("max_position_embeddings", 2048),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        bos_token_id=config.get("bos_token_id"),
        pad_token_id=config.get("pad_token_id"),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        torch_dtype=config.get("torch_dtype") or config.get("dtype") or "float32",
        rope_theta=scaling.get("rope_theta") or config.get("rope_theta", 10000.0),
    )
