"""The plain twins of both attention kernels, and the fast way to attend on a CPU: one sequence at a time over the paged cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gather_sequence(cache: torch.Tensor, block_ids: torch.Tensor | list[int], seq_len: int) -> torch.Tensor:
    """K or V of one sequence, [seq_len, num_kv_heads, head_dim], out of cache [num_blocks, block_size, num_kv_heads, head_dim].

    `block_ids` as a list whose numbers follow each other costs no copy: the result is then a view.
    """
    block_size = cache.shape[1]
    count = -(-seq_len // block_size)
    if isinstance(block_ids, list):
        first, last = block_ids[0], block_ids[count - 1]
        # Distinct numbers in ascending order that span exactly `count` follow each other; most CPU sequences do (see BlockPool).
        if last - first == count - 1 and all(block_ids[i] < block_ids[i + 1] for i in range(count - 1)):
            return cache[first : last + 1].reshape(-1, *cache.shape[2:])[:seq_len]
        block_ids = torch.tensor(block_ids[:count])
    return cache[block_ids[:count].long()].reshape(-1, *cache.shape[2:])[:seq_len]


def attend_one_sequence(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context_len: int, scale: float) -> torch.Tensor:
    """Attention of the last `query_len` tokens of one sequence over its keys.

    query: [query_len, num_heads, head_dim]; key, value: [seq_len, num_kv_heads, head_dim]; returns query's shape.
    The query at position p sees key k where k < context_len or k <= p.
    """
    query_len, num_heads, head_dim = query.shape
    seq_len, num_kv_heads = key.shape[:2]
    num_inside = context_len - (seq_len - query_len)  # queries that belong to the context
    if 0 < num_inside < query_len:  # two calls, of which the longer needs no mask
        inside = attend_one_sequence(query[:num_inside], key[:context_len], value[:context_len], context_len, scale)
        return torch.cat((inside, attend_one_sequence(query[num_inside:], key, value, context_len, scale)))
    group = num_heads // num_kv_heads
    key, value = key.transpose(0, 1)[None], value.transpose(0, 1)[None]  # [1, num_kv_heads, seq_len, head_dim]
    if query_len == 1:
        # The query group as length: several times faster here than broadcasting the keys over the group.
        folded = query.view(1, num_kv_heads, group, head_dim)
        return F.scaled_dot_product_attention(folded, key, value, scale=scale).reshape(1, num_heads, head_dim)
    causal, mask = num_inside <= 0, None
    if causal and seq_len > query_len:
        visible = (
            torch.arange(seq_len, device=query.device)[None] <= torch.arange(seq_len - query_len, seq_len, device=query.device)[:, None]
        )
        mask = visible[None, None]
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None], key, value, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=group > 1
    )
    return out[0].transpose(0, 1)


def paged_attention_torch(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor | list[list[int]],
    query_lens: list[int],
    seq_lens: list[int],
    context_lens: list[int],
    scale: float,
) -> torch.Tensor:
    """Attention of every sequence in a step; the plain twin of `paged_prefill_attention` and `paged_decode_attention`.

    query: [num_tokens, num_heads, head_dim], sequences one after the other; sequence i has query_lens[i] queries, the last of its
    seq_lens[i] tokens, and context_lens[i] of those are seen by all queries (`attend_one_sequence`).
    Caches: [num_blocks, block_size, num_kv_heads, head_dim].  Returns query's shape.
    """
    out = torch.empty_like(query)
    start = 0
    for index, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
        key = gather_sequence(key_cache, block_tables[index], seq_len).to(query.dtype)
        value = gather_sequence(value_cache, block_tables[index], seq_len).to(query.dtype)
        out[start : start + query_len] = attend_one_sequence(query[start : start + query_len], key, value, context_lens[index], scale)
        start += query_len
    return out
