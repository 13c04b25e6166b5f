"""How much memory the largest step takes, found by running it, which also compiles the kernels of prompts ahead of the first one."""

from __future__ import annotations

import numpy as np
import torch

from glmserve.config import EngineConfig
from glmserve.layers.attention import AttentionMetadata
from glmserve.models.registry import Model
from glmserve.models.spec import ModelSpec
from glmserve.runner.input_batch import PrefillArrays, prefill_inputs
from glmserve.runner.kv_pool import KVPool

_SHORT_PROMPT = 128  # tokens; long prompts may have kernels of their own (kernels/hopper_prefill), and both are wanted


def run_largest_step(
    model: Model, spec: ModelSpec, kv_dtype: torch.dtype, device: torch.device, max_batched_tokens: int, config: EngineConfig
) -> int:
    """Bytes that a full prefill, or the sampling of a full batch, takes beyond weights and K/V on a GPU.

    All tokens write to the null block: what is computed is meaningless, what is allocated is not.
    """
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    pool = KVPool(spec, 2, config.block_size, kv_dtype, device)
    model(*_prefill(model, spec, [min(_SHORT_PROMPT, spec.max_model_len)], config.block_size, device), pool.caches)
    full = [spec.max_model_len] * (max_batched_tokens // spec.max_model_len) or [max_batched_tokens]
    hidden = model(*_prefill(model, spec, full, config.block_size, device), pool.caches)
    logits = model.logits(hidden[: config.max_num_seqs]).float()
    torch.softmax(logits, dim=-1).cumsum(dim=-1)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _prefill(
    model: Model, spec: ModelSpec, query_lens: list[int], block_size: int, device: torch.device
) -> tuple[torch.Tensor, AttentionMetadata]:
    """Prompts of so many tokens, as a prefill step has them, but that all lie at one place."""
    tokens = np.zeros((sum(query_lens), 2 + (2 if spec.rotary == "2d" else 1)), dtype=np.int32)
    tables = [[0] * -(-length // block_size) for length in query_lens]
    inputs = prefill_inputs(PrefillArrays(tokens, tables, query_lens, query_lens, query_lens), model.rotary, device)
    return inputs.token_ids, inputs.metadata
