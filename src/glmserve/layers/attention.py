"""Attention over the paged K/V cache: what a step must know for it, and the choice between CPU and GPU paths.

One rule of visibility serves all families: a query at position p sees key k where k < context_len or k <= p.  The context is what comes
before ChatGLM-6B's `<sop>`, soft tokens included; it is empty in causal families.  In decode, where the query is the newest token, the
rule says nothing: it sees all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from glmserve.kernels.backend import on_gpu, use_triton
from glmserve.kernels.decode_pieces import Pieces
from glmserve.kernels.decode_rectangle import DecodeRectangle, attend_rectangle, decode_rectangle
from glmserve.kernels.dense_prefill import dense_prefill_attention
from glmserve.kernels.full_heads_decode import full_heads_decode
from glmserve.kernels.paged_attention import paged_attention_torch
from glmserve.kernels.paged_decode import paged_decode_attention
from glmserve.kernels.paged_prefill import paged_prefill_attention
from glmserve.kernels.rotary_store import finish_rotate_and_store, rotate_and_store
from glmserve.kernels.scaled_rows import TILE, Rounding, ScaledProduct, ScaledRows


@dataclass(frozen=True, slots=True)
class LayerCache:
    """K and V of one layer, [num_blocks, block_size, num_kv_heads, head_dim] each."""

    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True, slots=True)
class HostSequences:
    """The same facts as in AttentionMetadata as Python numbers, for the CPU path."""

    block_tables: list[list[int]]
    query_lens: list[int]
    seq_lens: list[int]
    context_lens: list[int]
    rectangle: list[DecodeRectangle | None] = field(default_factory=list)  # made by the first layer of a step, for all of them


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """One step's sequences, on the model's device.

    cos, sin: float32 [num_tokens, axes, pairs]; slot_mapping: int64 [num_tokens]; block_tables: int32 [num_seqs, max_blocks];
    seq_lens: int32 [num_seqs], all tokens up to the newest; pieces: in decode steps on a GPU alone; in prefill
    steps alone, query_starts: int32 [num_seqs + 1], and context_lens: int32 [num_seqs], how many first tokens of a sequence all of its
    queries see; whole: every sequence of a prefill step starts at its first token, so its keys are all in the step itself; padded: of the
    prefill step only the device knows the lengths, and max_query_len is no more than a bound.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    pieces: Pieces | None = None
    query_starts: torch.Tensor | None = None
    context_lens: torch.Tensor | None = None
    max_query_len: int = 1
    whole: bool = False
    padded: bool = False
    host: HostSequences = field(default_factory=lambda: HostSequences([], [], [], []))


@dataclass(frozen=True, slots=True)
class NewestTokens:
    """The tokens at which a prefill step samples: `rows`, int32 [num_sampling], are their places in the step, and `metadata` is what a
    decode step of them would have."""

    rows: torch.Tensor
    metadata: AttentionMetadata


def attention(
    qkv: torch.Tensor | ScaledProduct,
    cache: LayerCache,
    metadata: AttentionMetadata,
    num_heads: int,
    scale: float,
    rounding: Rounding | None = None,
) -> torch.Tensor | ScaledRows:
    """Rotate, store and attend: [num_tokens, num_heads + 2 * num_kv_heads, head_dim] -> [num_tokens, num_heads * head_dim].

    rounding: how the result comes in fp8; by tile it may do so where it decodes and a head is a tile.  On a GPU `qkv` may be overwritten.
    """
    decodes = metadata.query_starts is None
    if decodes and use_triton(cache.key) and cache.key.shape[2] == num_heads:
        assert metadata.pieces is not None
        return full_heads_decode(
            qkv, metadata.cos, metadata.sin, cache.key, cache.value, metadata.slot_mapping, metadata.block_tables, metadata.pieces,
            scale, rounding if isinstance(rounding, torch.Tensor) or cache.key.shape[3] == TILE else None,
        )  # fmt: skip
    query, key, value = _rotated_and_stored(qkv, cache, metadata, num_heads)
    level_scale = rounding if isinstance(rounding, torch.Tensor) and not decodes else None
    if not on_gpu(query):
        out = _attention_on_cpu(query, cache, metadata, scale)
    elif decodes:
        out = paged_decode_attention(query, cache.key, cache.value, metadata.block_tables, metadata.seq_lens, scale)
    elif metadata.whole and use_triton(query):
        assert metadata.query_starts is not None and metadata.context_lens is not None
        out = dense_prefill_attention(
            query, key, value, metadata.query_starts, metadata.context_lens, metadata.max_query_len, scale, metadata.padded, level_scale,
        )  # fmt: skip
    else:
        assert metadata.query_starts is not None and metadata.context_lens is not None
        out = paged_prefill_attention(
            query, cache.key, cache.value, metadata.block_tables, metadata.query_starts, metadata.seq_lens,
            metadata.context_lens, metadata.max_query_len, scale, level_scale,
        )  # fmt: skip
    out = out.reshape(out.shape[0], -1)
    return out if level_scale is None else ScaledRows(out, level_scale.expand(out.shape[0]))


def attention_of_newest(
    qkv: torch.Tensor | ScaledProduct,
    cache: LayerCache,
    metadata: AttentionMetadata,
    newest: NewestTokens,
    num_heads: int,
    scale: float,
    rounding: Rounding | None = None,
) -> torch.Tensor | ScaledRows:
    """Rotate and store all tokens of a prefill step, but attend for its newest ones alone: [num_sampling, num_heads * head_dim].

    rounding: as in `attention`.  qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]; on a GPU it may be overwritten.
    """
    # before the rotation, which may be in place and which decoding does itself
    picked = qkv.of_rows(newest.rows) if isinstance(qkv, ScaledProduct) else qkv.index_select(0, newest.rows)
    if isinstance(rounding, str):  # so few rows come finished when decoding, for which the kernel is compiled
        picked = _finished(picked, cache)
    store_keys_and_values(qkv, cache, metadata, num_heads)
    return attention(picked, cache, newest.metadata, num_heads, scale, rounding)


def store_keys_and_values(qkv: torch.Tensor | ScaledProduct, cache: LayerCache, metadata: AttentionMetadata, num_heads: int) -> None:
    """Rotate and store without attending, where nothing reads the result."""
    _rotated_and_stored(qkv, cache, metadata, num_heads)


def _finished(qkv: torch.Tensor | ScaledProduct, cache: LayerCache) -> torch.Tensor:
    return qkv.finished().view(qkv.levels.shape[0], -1, cache.key.shape[3]) if isinstance(qkv, ScaledProduct) else qkv


def _rotated_and_stored(
    qkv: torch.Tensor | ScaledProduct, cache: LayerCache, metadata: AttentionMetadata, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries and keys, rotated, and values; keys and values are in the cache too."""
    num_rotated = num_heads + cache.key.shape[2]
    where = (metadata.cos, metadata.sin, cache.key, cache.value, metadata.slot_mapping, num_heads)
    if isinstance(qkv, ScaledProduct) and use_triton(qkv.levels):
        rotated = qkv = finish_rotate_and_store(qkv, *where)
    else:
        qkv = _finished(qkv, cache)
        rotated = rotate_and_store(qkv, *where)
    return rotated[:, :num_heads], rotated[:, num_heads:num_rotated], qkv[:, num_rotated:]


def _attention_on_cpu(query: torch.Tensor, cache: LayerCache, metadata: AttentionMetadata, scale: float) -> torch.Tensor:
    host = metadata.host
    if metadata.query_starts is None:  # a decode step
        if not host.rectangle:
            host.rectangle.append(decode_rectangle(cache.key, metadata.block_tables, metadata.seq_lens, query.dtype))
        if host.rectangle[0] is not None:
            return attend_rectangle(query, cache.key, cache.value, host.rectangle[0], scale)
    return paged_attention_torch(query, cache.key, cache.value, host.block_tables, host.query_lens, host.seq_lens, host.context_lens, scale)
