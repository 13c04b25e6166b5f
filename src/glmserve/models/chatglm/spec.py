"""Facts of ChatGLM-6B, first generation, read from its released config.json (THUDM/chatglm-6b, configuration_chatglm.py)."""

from __future__ import annotations

from typing import Any

from glmserve.models.spec import ModelSpec
from glmserve.protocol.weight_format import WeightFormat

OLD_VOCAB_SIZE = 150528  # revisions before 2023-04-06 kept 20,000 image tokens in front of the text tokens
OLD_VOCAB_OFFSET = 20000
_FORMATS: dict[Any, WeightFormat] = {0: "none", 8: "int8", 4: "int4"}  # by quantization_bit


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """Shapes and special ids.  Raises KeyError for a missing key, ValueError for a model this code would get wrong."""
    for key in ("multi_query_attention", "original_rope", "rmsnorm"):
        if key in config:
            raise ValueError(
                f"the key {key!r} belongs to ChatGLM2 or later; this server knows the first generation only. "
                "vLLM serves ChatGLM2-6B, ChatGLM3-6B and GLM-4."
            )
    if not config.get("position_encoding_2d", True):
        raise ValueError("position_encoding_2d is false; ChatGLM-6B has two-dimensional positions.")
    bits = config.get("quantization_bit") or 0
    if bits not in _FORMATS:
        raise ValueError(f"quantization_bit is {bits!r}; the released code knows 4 and 8.")
    num_soft_tokens = config.get("pre_seq_len") or 0
    if not isinstance(num_soft_tokens, int) or num_soft_tokens < 0:
        raise ValueError(f"pre_seq_len is {num_soft_tokens!r}; P-Tuning has a whole number of trained tokens.")
    hidden_size, num_heads, vocab_size = config["hidden_size"], config["num_attention_heads"], config["vocab_size"]
    if hidden_size % (4 * num_heads):
        raise ValueError(f"hidden_size {hidden_size} does not divide into {num_heads} heads of a multiple of 4.")
    shift = OLD_VOCAB_OFFSET if vocab_size == OLD_VOCAB_SIZE else 0
    return ModelSpec(
        family="chatglm",
        attention="prefix",
        rotary="2d",
        num_layers=config["num_layers"],
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=config.get("inner_hidden_size") or 4 * hidden_size,
        vocab_size=vocab_size,
        max_model_len=config.get("max_sequence_length", 2048),
        norm_epsilon=config.get("layernorm_epsilon", 1e-5),
        eos_token_ids=(config.get("eos_token_id", 130005 + shift),),
        bos_token_id=config.get("bos_token_id", 130004 + shift),
        mask_token_id=config.get("mask_token_id", 130000 + shift),
        gmask_token_id=config.get("gmask_token_id", 130001 + shift),
        pad_token_id=config.get("pad_token_id", 3 + shift),
        torch_dtype=config.get("torch_dtype", "float16"),
        layer_format=_FORMATS[bits],
        head_format=_FORMATS[bits] if config.get("quantization_embeddings") else "none",
        released_bits=bits,
        num_soft_tokens=num_soft_tokens,
        num_mlp_matrices=2,
        default_sampling={"temperature": 0.95, "top_p": 0.7, "top_k": 50},  # chat(); top_k from the library it was written for
        extra={
            "invalid_score_token_id": 5 + shift,  # InvalidScoreLogitsProcessor
            "prefix_projection": bool(config.get("prefix_projection")),  # P-Tuning
        },
    )
