"""Writes a model's trained keys and values (P-Tuning) into the blocks that every sequence starts with."""

from __future__ import annotations

import torch

from glmserve.layers.attention import AttentionMetadata, store_keys_and_values
from glmserve.runner.kv_pool import KVPool


def write_soft_tokens(soft: torch.Tensor, pool: KVPool, block_ids: list[int]) -> None:
    """`soft`: [num_soft_tokens, num_layers, 2, num_heads, head_dim], its tokens one after the other into the slots of `block_ids`."""
    count, _, _, num_heads, head_dim = soft.shape
    index = torch.arange(count, device=soft.device)
    slots = torch.tensor(block_ids, device=soft.device)[index // pool.block_size] * pool.block_size + index % pool.block_size
    no_turn = torch.ones((count, 1, head_dim // 2), dtype=torch.float32, device=soft.device)
    metadata = AttentionMetadata(no_turn, torch.zeros_like(no_turn), slots, block_tables=slots, seq_lens=slots)  # the last two are not read
    for layer, cache in enumerate(pool.caches):
        keys, values = soft[:, layer].unbind(dim=1)
        store_keys_and_values(torch.cat((torch.zeros_like(keys), keys, values), dim=1), cache, metadata, num_heads)
