"""ChatGLM-6B, first generation, in torch.  Source: modeling_chatglm.py of THUDM/chatglm-6b, revision 8b7d335; facts in docs/models.md.

Prefix LM: the tokens before `<sop>` (the context) are seen by all, what follows is causal.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from glmserve.kernels.backend import on_gpu
from glmserve.kernels.layer_stream import Norm, Stretch, layer_stream, serves_layer_stream
from glmserve.kernels.norm import Summands, residual_layer_norm, residual_layer_norm_scaled
from glmserve.kernels.scaled_rows import Rounding, ScaledProduct, ScaledRows
from glmserve.layers.attention import AttentionMetadata, LayerCache, NewestTokens, attention, attention_of_newest, store_keys_and_values
from glmserve.layers.fixed_scales import gelu_scale, mean_scale, norm_scale
from glmserve.layers.linear import Linear
from glmserve.layers.quantized_linear import QuantizedLinear, make_linear
from glmserve.layers.rotary import RotaryTable
from glmserve.models.chatglm.prefix_encoder import PrefixEncoder
from glmserve.models.registry import Target
from glmserve.models.spec import ModelSpec

# The released block takes a layer count that defaults to 28, and the model never passes its own: also a 2-layer model uses this.
ALPHA = math.sqrt(2 * 28)
_TOKENS_AT_ONCE = 8192


class ChatGLM(nn.Module):
    """`forward` gives hidden states of a step, `logits` turns chosen rows into scores."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.word_embeddings = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size), requires_grad=False)
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.num_layers))
        self.final_layernorm = LayerNorm(spec)
        self.lm_head = make_linear(spec.hidden_size, spec.vocab_size, spec.head_format, bias=False)
        self.prefix_encoder = PrefixEncoder(spec) if spec.num_soft_tokens else None
        self.register_parameter("first_qkv", None)  # [vocab_size, qkv_values], where it is known
        self.rotary = RotaryTable(rotary_frequencies(spec.head_dim), spec.max_model_len + 1, device)

    def forward(self, token_ids: torch.Tensor, metadata: AttentionMetadata, caches: list[LayerCache]) -> torch.Tensor:
        """token_ids: [num_tokens]; returns normalised hidden states [num_tokens, hidden_size]."""
        qkv, residual = self._run(token_ids, metadata, caches)
        return self._last.finish(qkv, residual, metadata, caches[-1], self.final_layernorm)

    def prefill(
        self, token_ids: torch.Tensor, metadata: AttentionMetadata, caches: list[LayerCache], newest: NewestTokens | None
    ) -> torch.Tensor | None:
        """Store K and V of all tokens; normalised hidden states [num_sampling, hidden_size] of the newest ones, if any.

        Nothing else reads what the last layer makes of a token, so beyond K and V it computes the newest alone.
        """
        qkv, residual = self._run(token_ids, metadata, caches)
        if newest is None:
            self._last.store(qkv, metadata, caches[-1])
            return None
        return self._last.finish_newest(qkv, residual, metadata, caches[-1], newest, self.final_layernorm)

    def _run(
        self, token_ids: torch.Tensor, metadata: AttentionMetadata, caches: list[LayerCache]
    ) -> tuple[torch.Tensor | ScaledProduct, torch.Tensor]:
        """Everything up to the last layer's attention: that layer's q|k|v and its normalised input."""
        blocks: list[Block] = list(self.layers)  # type: ignore[arg-type]
        embedded = F.embedding(token_ids, self.word_embeddings)
        if self.first_qkv is None:
            qkv, residual = blocks[0].begin(embedded, None)
        else:
            qkv = F.embedding(token_ids, self.first_qkv).view(-1, 3 * self.spec.num_heads, self.spec.head_dim)
            residual = blocks[0].input_layernorm(embedded, None)
        for (block, following), cache in zip(pairwise(blocks), caches[:-1], strict=True):
            qkv, residual = block(qkv, residual, metadata, cache, following)
        return qkv, residual

    @property
    def _last(self) -> Block:
        return self.layers[-1]  # type: ignore[return-value]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] -> [num_rows, vocab_size]."""
        scores: torch.Tensor = self.lm_head(hidden)
        return scores

    def finish_loading(self) -> None:
        """All weights are there: what depends on them is settled."""
        blocks: list[Block] = list(self.layers)  # type: ignore[arg-type]
        for block in blocks:
            block.fix_scales(self.prefix_encoder is not None)
        if self.spec.knows_first_qkv:
            self.first_qkv = nn.Parameter(self._first_qkv_of_each_token(), requires_grad=False)

    def _first_qkv_of_each_token(self) -> torch.Tensor:
        """Nothing but the token decides it, for the rotation comes after.

        Source: Graef, "Transformer tricks: Precomputing the first layer", arXiv 2402.13388.
        """
        table = self.word_embeddings.new_empty(self.spec.vocab_size, self.spec.qkv_values)
        for embedded, rows in zip(self.word_embeddings.split(_TOKENS_AT_ONCE), table.split(_TOKENS_AT_ONCE), strict=True):
            qkv, _ = self.layers[0].begin(embedded, None)  # type: ignore[operator]
            rows.copy_((qkv.finished() if isinstance(qkv, ScaledProduct) else qkv).view_as(rows))
        return table

    def take_soft_tokens(self) -> torch.Tensor | None:
        """P-Tuning's keys and values, [num_soft_tokens, num_layers, 2, num_heads, head_dim]; what made them is let go."""
        encoder, self.prefix_encoder = self.prefix_encoder, None
        return None if encoder is None else encoder()

    def target_of(self, name: str) -> Target | None:
        """Released names -> parameters; rotary tables in a checkpoint are ignored, as the released code does."""
        if name.endswith("rotary_emb.inv_freq"):
            return None
        name = name.removeprefix("transformer.").replace(".attention.", ".").replace(".mlp.", ".")
        if name == "word_embeddings.weight":
            return Target("word_embeddings")
        reorder = self._one_block_each if ".query_key_value." in name else None
        return Target(name, reorder=reorder)

    def _one_block_each(self, rows: torch.Tensor) -> torch.Tensor:
        """[head][q d | k d | v d] rows -> all q, all k, all v."""
        spec = self.spec
        parts = rows.view(spec.num_heads, 3, spec.head_dim, *rows.shape[1:])
        return parts.transpose(0, 1).reshape(rows.shape)


class Block(nn.Module):
    """a = LN(x); x1 = alpha a + Attn(a); b = LN(x1); x2 = alpha b + MLP(b): the residual is the normalised input, scaled.

    The sum is left to the next LayerNorm, which adds and normalises in one pass: x below is what is still to be added to alpha * residual.
    From attention to attention a step carries q|k|v and a, so that all between two attentions can be one kernel (`layer_stream`).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden_size, kept = spec.hidden_size, spec.layer_format
        self.num_heads, self.head_dim = spec.num_heads, spec.head_dim
        self._is_fp8 = kept == "fp8"
        self._mixed_scale: torch.Tensor | None = None  # of what attention gives, where it is known before
        self.input_layernorm = LayerNorm(spec)
        self.query_key_value = make_linear(hidden_size, 3 * hidden_size, kept, scaled_by_twos=True)  # rows reordered at load: q, k, v
        self.dense = make_linear(hidden_size, hidden_size, kept, scaled_by_twos=True)
        self.post_attention_layernorm = LayerNorm(spec)
        self.dense_h_to_4h = make_linear(hidden_size, spec.intermediate_size, kept, scaled_by_twos=True)
        self.dense_4h_to_h = make_linear(spec.intermediate_size, hidden_size, kept, scaled_by_twos=True)

    def fix_scales(self, has_soft_tokens: bool) -> None:
        """Once all weights are there.  has_soft_tokens: values come from elsewhere too, so those of the tokens say nothing of the most."""
        if not self._is_fp8:
            return
        products = (self.query_key_value, self.dense, self.dense_h_to_4h, self.dense_4h_to_h)
        qkv, dense, up, down = (product for product in products if isinstance(product, QuantizedLinear))
        before, after = self.input_layernorm.as_norm(), self.post_attention_layernorm.as_norm()
        values = slice(2 * self.num_heads * self.head_dim, None)
        if not has_soft_tokens and dense.takes_scaled(2, dense.weight.device):
            self._mixed_scale = mean_scale(before, qkv.as_product().of_outputs(values))
        qkv.fix_scales(norm_scale(before))
        dense.fix_scales(self._mixed_scale)
        up.fix_gelu_scales(norm_scale(after), gelu_scale(after, up.as_product()))
        down.fix_scales(up.fixed_gelu_scale)

    def begin(self, x: torch.Tensor | Summands, residual: torch.Tensor | None) -> tuple[torch.Tensor | ScaledProduct, torch.Tensor]:
        """(q|k|v, a) from [num_tokens, hidden_size] each; x may still be the summands of a product."""
        a, rows = self.input_layernorm.for_product(self.query_key_value, x, residual)
        return self._qkv(rows), a

    def forward(
        self, qkv: torch.Tensor | ScaledProduct, a: torch.Tensor, metadata: AttentionMetadata, cache: LayerCache, following: Block
    ) -> tuple[torch.Tensor | ScaledProduct, torch.Tensor]:
        """(q|k|v, a) of the following block."""
        mixed = attention(qkv, cache, metadata, self.num_heads, self.head_dim**-0.5, self._rounding(a, metadata))
        if self._streams(mixed, a):
            next_qkv, a = layer_stream(mixed, a, self._stretch_to(following.input_layernorm, following.query_key_value))
            assert next_qkv is not None
            return next_qkv.view(-1, 3 * self.num_heads, self.head_dim), a
        return following.begin(*self._after_attention(mixed, a))

    def finish(
        self, qkv: torch.Tensor | ScaledProduct, a: torch.Tensor, metadata: AttentionMetadata, cache: LayerCache, final: LayerNorm
    ) -> torch.Tensor:
        """The last block: [num_tokens, hidden_size], normalised by the model's final LayerNorm."""
        mixed = attention(qkv, cache, metadata, self.num_heads, self.head_dim**-0.5, self._rounding(a, metadata))
        return self._end(mixed, a, final)

    def finish_newest(
        self, qkv: torch.Tensor | ScaledProduct, a: torch.Tensor, metadata: AttentionMetadata, cache: LayerCache, newest: NewestTokens,
        final: LayerNorm,
    ) -> torch.Tensor:  # fmt: skip
        """`finish` for the newest tokens alone, [num_sampling, hidden_size]; K and V of all are stored."""
        a = a.index_select(0, newest.rows)
        rounding = self._rounding(a, newest.metadata)  # as when decoding, for which the kernels are compiled at the start
        mixed = attention_of_newest(qkv, cache, metadata, newest, self.num_heads, self.head_dim**-0.5, rounding)
        return self._end(mixed, a, final)

    def store(self, qkv: torch.Tensor | ScaledProduct, metadata: AttentionMetadata, cache: LayerCache) -> None:
        """Only what later tokens need of this layer: its K and V."""
        store_keys_and_values(qkv, cache, metadata, self.num_heads)

    def _rounding(self, a: torch.Tensor, metadata: AttentionMetadata) -> Rounding | None:
        """How attention had better round what it gives to fp8."""
        decodes = metadata.query_starts is None
        if decodes and (self.dense.takes_tiles(*_size(a)) or (self._is_fp8 and self._fits_stream(a))):
            return "by tile"
        return self._mixed_scale if not decodes or self.dense.takes_scaled(*_size(a)) else None

    def _streams(self, mixed: torch.Tensor | ScaledRows, a: torch.Tensor) -> bool:
        """Whether what follows attention is one kernel.  Attention over a prompt does not round by tile, which that kernel wants in fp8."""
        return self._fits_stream(a) and (isinstance(mixed, ScaledRows) and mixed.by_tile) == self._is_fp8

    def _fits_stream(self, a: torch.Tensor) -> bool:
        return on_gpu(a) and serves_layer_stream(a, self.dense.weight, self.dense_h_to_4h.out_features)

    def _end(self, mixed: torch.Tensor | ScaledRows, a: torch.Tensor, final: LayerNorm) -> torch.Tensor:
        if self._streams(mixed, a):
            return layer_stream(mixed, a, self._stretch_to(final, None))[1]
        hidden: torch.Tensor = final(*self._after_attention(mixed, a))
        return hidden

    def _after_attention(self, mixed: torch.Tensor | ScaledRows, a: torch.Tensor) -> tuple[torch.Tensor | Summands, torch.Tensor]:
        b, rows = self.post_attention_layernorm.for_product(self.dense_h_to_4h, self.dense.summands(mixed), a)
        return self.dense_4h_to_h.summands(self.dense_h_to_4h.gelu(rows)), b

    def _stretch_to(self, next_norm: LayerNorm, next_product: Linear | QuantizedLinear | None) -> Stretch:
        norm = self.post_attention_layernorm
        return Stretch(
            self.dense.as_product(), norm.as_norm(), self.dense_h_to_4h.as_product(), self.dense_4h_to_h.as_product(),
            next_norm.as_norm(), None if next_product is None else next_product.as_product(), ALPHA, norm.epsilon,
        )  # fmt: skip

    def _qkv(self, rows: torch.Tensor | ScaledRows) -> torch.Tensor | ScaledProduct:
        """[num_tokens, hidden_size] -> [num_tokens, 3 * num_heads, head_dim], or what is still to be finished."""
        qkv = self.query_key_value.unfinished(rows)
        return qkv if isinstance(qkv, ScaledProduct) else qkv.view(-1, 3 * self.num_heads, self.head_dim)


class LayerNorm(nn.Module):
    """LayerNorm(x + alpha * residual)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.epsilon = spec.norm_epsilon
        self.weight = nn.Parameter(torch.empty(spec.hidden_size), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(spec.hidden_size), requires_grad=False)

    def forward(self, x: torch.Tensor | Summands, residual: torch.Tensor | None) -> torch.Tensor:
        """x, residual: [num_tokens, hidden_size]."""
        return residual_layer_norm(x, residual, ALPHA, self.weight, self.bias, self.epsilon)

    def as_norm(self) -> Norm:
        """What a kernel takes of it."""
        return Norm(self.weight, self.bias)

    def for_product(
        self, product: Linear | QuantizedLinear, x: torch.Tensor | Summands, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | ScaledRows]:
        """The normalised rows, and the same as `product` takes them."""
        if product.takes_scaled(*_size(x)):
            fixed = product.fixed_row_scale(_size(x)[0])
            return residual_layer_norm_scaled(x, residual, ALPHA, self.weight, self.bias, self.epsilon, fixed)
        normed = self(x, residual)
        return normed, normed


def _size(x: torch.Tensor | Summands) -> tuple[int, torch.device]:
    """(number of rows, where they are)."""
    rows = x.parts[0] if isinstance(x, Summands) else x
    return rows.shape[0], rows.device


def rotary_frequencies(head_dim: int) -> torch.Tensor:
    """float32 [head_dim / 4], rounded to float16 as the released code builds them, whatever the model's dtype."""
    width = head_dim // 2  # of one position axis
    exact = 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))
    return exact.half().float()
