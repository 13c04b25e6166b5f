"""Llama-shaped decoder in torch.  Source: modeling_llama.py of transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from glmserve.kernels.activation import silu_and_mul
from glmserve.kernels.norm import residual_rms_norm
from glmserve.kernels.scaled_rows import ScaledRows
from glmserve.layers.attention import AttentionMetadata, LayerCache, NewestTokens, attention, attention_of_newest, store_keys_and_values
from glmserve.layers.quantized_linear import make_linear
from glmserve.layers.rotary import RotaryTable
from glmserve.models.registry import Target
from glmserve.models.spec import ModelSpec


class Llama(nn.Module):
    """`forward` gives hidden states of a step, `logits` turns chosen rows into scores."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size), requires_grad=False)
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec)
        self.lm_head = make_linear(spec.hidden_size, spec.vocab_size, spec.head_format, bias=False)
        frequencies = 1.0 / (spec.rope_theta ** (torch.arange(0, spec.head_dim, 2).float() / spec.head_dim))
        self.rotary = RotaryTable(frequencies, spec.max_model_len + 1, device)

    def forward(self, token_ids: torch.Tensor, metadata: AttentionMetadata, caches: list[LayerCache]) -> torch.Tensor:
        """token_ids: [num_tokens]; returns normalised hidden states [num_tokens, hidden_size]."""
        x, residual = F.embedding(token_ids, self.embed_tokens), None
        for layer, cache in zip(self.layers, caches, strict=True):
            x, residual = layer(x, residual, metadata, cache)
        hidden: torch.Tensor = self.norm(x, residual)[0]
        return hidden

    def prefill(
        self, token_ids: torch.Tensor, metadata: AttentionMetadata, caches: list[LayerCache], newest: NewestTokens | None
    ) -> torch.Tensor | None:
        """Store K and V of all tokens; normalised hidden states [num_sampling, hidden_size] of the newest ones, if any.

        Nothing else reads what the last layer makes of a token, so beyond K and V it computes the newest alone.
        """
        x, residual = F.embedding(token_ids, self.embed_tokens), None
        for layer, cache in zip(self.layers[:-1], caches[:-1], strict=True):
            x, residual = layer(x, residual, metadata, cache)
        last: Block = self.layers[-1]  # type: ignore[assignment]
        if newest is None:
            last.store(x, residual, metadata, caches[-1])
            return None
        hidden: torch.Tensor = self.norm(*last.finish(x, residual, metadata, caches[-1], newest))[0]
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] -> [num_rows, vocab_size]."""
        scores: torch.Tensor = self.lm_head(hidden)
        return scores

    def finish_loading(self) -> None:
        """Nothing depends on the weights."""

    def take_soft_tokens(self) -> torch.Tensor | None:
        """None: P-Tuning is ChatGLM's."""
        return None

    def target_of(self, name: str) -> Target | None:
        """transformers' names -> parameters; q, k and v, and gate and up, are stacked."""
        if name.endswith("rotary_emb.inv_freq"):
            return None
        name = name.removeprefix("model.").replace(".self_attn.", ".").replace(".mlp.", ".")
        if name == "embed_tokens.weight":
            return Target("embed_tokens")
        spec = self.spec
        width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        inner = spec.intermediate_size
        stacked = {  # part -> where it goes, its first row there, its rows
            "q_proj": ("qkv_proj", 0, width),
            "k_proj": ("qkv_proj", width, kv_width),
            "v_proj": ("qkv_proj", width + kv_width, kv_width),
            "gate_proj": ("gate_up_proj", 0, inner),
            "up_proj": ("gate_up_proj", inner, inner),
        }
        for part, (whole, first_row, num_rows) in stacked.items():
            if f".{part}." in name:
                return Target(name.replace(part, whole), first_row, num_rows)
        return Target(name)


class Block(nn.Module):
    """x += Attn(norm(x)); x += MLP(norm(x)).  The last addition is left to the next norm: a block takes and returns (x, residual)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.num_heads, self.head_dim = spec.num_heads, spec.head_dim
        self.all_heads = spec.num_heads + 2 * spec.num_kv_heads
        self.input_layernorm = RMSNorm(spec)
        self.qkv_proj = make_linear(spec.hidden_size, self.all_heads * spec.head_dim, spec.layer_format, bias=False)
        self.o_proj = make_linear(spec.num_heads * spec.head_dim, spec.hidden_size, spec.layer_format, bias=False)
        self.post_attention_layernorm = RMSNorm(spec)
        self.gate_up_proj = make_linear(spec.hidden_size, 2 * spec.intermediate_size, spec.layer_format, bias=False)
        self.down_proj = make_linear(spec.intermediate_size, spec.hidden_size, spec.layer_format, bias=False)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, metadata: AttentionMetadata, cache: LayerCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual: [num_tokens, hidden_size]."""
        normed, residual = self.input_layernorm(x, residual)
        return self._after_attention(attention(self._qkv(normed), cache, metadata, self.num_heads, self.head_dim**-0.5), residual)

    def finish(
        self, x: torch.Tensor, residual: torch.Tensor | None, metadata: AttentionMetadata, cache: LayerCache, newest: NewestTokens
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward` for the newest tokens alone, [num_sampling, hidden_size] each; K and V of all are stored."""
        normed, residual = self.input_layernorm(x, residual)
        mixed = attention_of_newest(self._qkv(normed), cache, metadata, newest, self.num_heads, self.head_dim**-0.5)
        return self._after_attention(mixed, residual.index_select(0, newest.rows))

    def store(self, x: torch.Tensor, residual: torch.Tensor | None, metadata: AttentionMetadata, cache: LayerCache) -> None:
        """Only what later tokens need of this layer: its K and V."""
        store_keys_and_values(self._qkv(self.input_layernorm(x, residual)[0]), cache, metadata, self.num_heads)

    def _after_attention(self, mixed: torch.Tensor | ScaledRows, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed, residual = self.post_attention_layernorm(self.o_proj(mixed), residual)
        return self.down_proj(silu_and_mul(self.gate_up_proj(normed))), residual

    def _qkv(self, normed: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] -> [num_tokens, num_heads + 2 * num_kv_heads, head_dim]."""
        qkv: torch.Tensor = self.qkv_proj(normed)
        return qkv.view(-1, self.all_heads, self.head_dim)


class RMSNorm(nn.Module):
    """(RMSNorm(x + residual), x + residual)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.epsilon = spec.norm_epsilon
        self.weight = nn.Parameter(torch.empty(spec.hidden_size), requires_grad=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual: [num_tokens, hidden_size]."""
        return residual_rms_norm(x, residual, self.weight, self.epsilon)
