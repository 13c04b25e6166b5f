"""A model's trained keys and values (P-Tuning): read from a checkpoint of their own, written into the blocks all sequences start with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from glmserve.layers.attention import AttentionMetadata, store_keys_and_values
from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import ModelLoadError
from glmserve.runner.kv_pool import KVPool
from glmserve.runner.weight_files import tensors_of, weight_files

_ENCODER = "prefix_encoder."


def with_checkpoint(spec: ModelSpec, folder: Path) -> ModelSpec:
    """`spec` with the soft tokens of a P-Tuning checkpoint, which says by its tensors how many there are and how they are made.

    Raises ModelLoadError where there are none, or the model takes none.
    """
    if spec.family != "chatglm":
        raise ModelLoadError("--ptuning-checkpoint is for ChatGLM-6B; this model takes no trained keys and values.")
    shapes = {name.partition(_ENCODER)[2]: tensor.shape for name, tensor, _ in prefix_tensors(folder)}
    if "embedding.weight" not in shapes:
        raise ModelLoadError(
            f"{folder} holds no {_ENCODER}embedding.weight, so it is no P-Tuning checkpoint. "
            "Give the folder that training wrote, with pytorch_model.bin in it."
        )
    projects = any(name.startswith("trans.") for name in shapes)
    return replace(spec, num_soft_tokens=shapes["embedding.weight"][0], extra={**spec.extra, "prefix_projection": projects})


def prefix_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """(name, tensor, file) of what such a checkpoint adds to its model."""
    for shard in weight_files(folder):
        for name, tensor in tensors_of(shard):
            if _ENCODER in name:
                yield name, tensor, shard


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
