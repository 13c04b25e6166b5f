"""A decode step's attention on a CPU as one call: K and V of all sequences copied into one rectangle, padded to the longest.

With short contexts a call a sequence costs more than the copy.  With long ones it does not: `paged_attention_torch` is for those.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Measured at 8 sequences of 192 values a token (SmolLM2): the copy pays up to about 340 tokens a sequence.
_VALUES_WORTH_COPYING = 2**16


@dataclass(frozen=True, slots=True)
class DecodeRectangle:
    """Where a step's K and V lie, the same for all layers.

    slots: int64 [num_seqs * max_len]; mask: [num_seqs, 1, 1, max_len], 0 or -inf.
    """

    slots: torch.Tensor
    mask: torch.Tensor


def decode_rectangle(cache: torch.Tensor, block_tables: torch.Tensor, seq_lens: torch.Tensor, dtype: torch.dtype) -> DecodeRectangle | None:
    """None where attending one sequence after the other is cheaper.

    cache: [num_blocks, block_size, num_kv_heads, head_dim]; block_tables: int32 [num_seqs, max_blocks]; seq_lens: int32 [num_seqs];
    dtype: the queries'.
    """
    block_size, num_kv_heads, head_dim = cache.shape[1:]
    max_len = int(seq_lens.max())
    if max_len * num_kv_heads * head_dim > _VALUES_WORTH_COPYING or not cache.is_contiguous():
        return None
    positions = torch.arange(max_len)
    inside = positions < seq_lens[:, None]
    slots = block_tables[:, positions // block_size].long() * block_size + positions % block_size
    # Padding reads the sequence's own first token: what lies behind its end may be anything, also not a number.
    slots = torch.where(inside, slots, slots[:, :1])
    mask = torch.zeros(inside.shape, dtype=dtype).masked_fill_(~inside, float("-inf"))
    return DecodeRectangle(slots.view(-1), mask[:, None, None])


def attend_rectangle(
    query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, rectangle: DecodeRectangle, scale: float
) -> torch.Tensor:
    """One query a sequence, [num_seqs, num_heads, head_dim]; returns the same shape.  Twin: `paged_attention_torch`."""
    num_seqs, num_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[2]

    def gathered(cache: torch.Tensor) -> torch.Tensor:  # index_select: several times faster here than indexing with a tensor
        rows = cache.view(-1, num_kv_heads * head_dim).index_select(0, rectangle.slots)
        return rows.view(num_seqs, -1, num_kv_heads, head_dim).transpose(1, 2).to(query.dtype)

    # The query group as length: several times faster here than broadcasting the keys over the group.
    folded = query.reshape(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_dim)
    out = F.scaled_dot_product_attention(folded, gathered(key_cache), gathered(value_cache), attn_mask=rectangle.mask, scale=scale)
    return out.reshape(num_seqs, num_heads, head_dim)
