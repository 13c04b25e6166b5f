"""How much memory there is, what the weights leave, and the words for when it is not enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from glmserve.config import EngineConfig
from glmserve.models.registry import Model
from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import NotEnoughMemoryError
from glmserve.runner.kv_pool import bytes_per_block
from glmserve.runner.loader import Progress
from glmserve.runner.profiling import run_largest_step

_FIRST_QKV_SHARE = 0.05
_CPU_POOL_BYTES = 2**30
_CPU_CONTEXTS = 32


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB"


def available_bytes(config: EngineConfig, device: torch.device) -> int:
    """Bytes this engine may still take on `device`."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return min(free, int(total * config.gpu_memory_utilization) - (total - free)) + unused
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise NotEnoughMemoryError("the system does not say how much memory is available (/proc/meminfo)", 0)


def first_qkv_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of the table that `ModelSpec.knows_first_qkv` speaks of; 0 where there is none."""
    return spec.vocab_size * spec.qkv_values * dtype.itemsize if spec.knows_first_qkv else 0


def with_first_qkv(config: EngineConfig, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> ModelSpec:
    """`spec` with such a table where it is worth its memory: on a GPU with plenty, for ChatGLM (docs/decisions/first-layer.md)."""
    wanted = device.type == "cuda" and spec.family == "chatglm" and config.kernels != "plain"
    known = replace(spec, knows_first_qkv=True)
    return known if wanted and first_qkv_bytes(known, dtype) <= _FIRST_QKV_SHARE * available_bytes(config, device) else spec


def check_room_for_weights(needed: int, config: EngineConfig, device: torch.device) -> None:
    """Raises NotEnoughMemoryError that says how much is missing."""
    available = available_bytes(config, device)
    if needed > available:
        raise NotEnoughMemoryError(
            f"the weights need {gib(needed)} and {device} has {gib(max(0, available))} to use: {gib(needed - available)} are missing. "
            + _ways_to_more_memory(device),
            missing_bytes=needed - available,
        )


def num_kv_blocks(
    config: EngineConfig,
    model: Model,
    spec: ModelSpec,
    kv_dtype: torch.dtype,
    device: torch.device,
    max_batched_tokens: int,
    progress: Progress,
) -> int:
    """How many K/V blocks fit beside the weights and the largest step, the null block included.

    Raises NotEnoughMemoryError when not even one full context fits.
    """
    per_block = bytes_per_block(spec, config.block_size, kv_dtype)
    soft = spec.num_soft_tokens  # once in blocks that all share, and before the context
    one_context = (-(-(soft + spec.max_model_len) // config.block_size) + -(-soft // config.block_size) + 1) * per_block
    asked_for = config.num_kv_blocks * per_block if config.num_kv_blocks else config.kv_cache_memory_bytes
    largest_step = 0
    if device.type == "cuda":  # also where the pool's size is given: it compiles the kernels of prompts
        progress("measuring the memory of the largest step")
        largest_step = run_largest_step(model, spec, kv_dtype, device, max_batched_tokens, config)
    if asked_for:
        available = asked_for
        if device.type == "cpu":  # a GPU says for itself when it is full; a CPU would promise the memory and end the process later
            _check_room_for_pool(asked_for, available_bytes(config, device))
    elif device.type == "cuda":
        available = available_bytes(config, device) - largest_step
    else:
        wanted = min(max(_CPU_POOL_BYTES, one_context), _CPU_CONTEXTS * one_context)
        available = min(available_bytes(config, device), wanted)
    if available < one_context:
        ways = "Raise --kv-cache-memory-bytes or --num-kv-blocks." if asked_for else _ways_to_more_memory(device)
        raise NotEnoughMemoryError(
            f"the weights fit on {device}, but K/V of one full context ({spec.max_model_len} tokens, {gib(one_context)}) do not: "
            f"{gib(one_context - available)} are missing. Lower --max-model-len. {ways}",
            missing_bytes=one_context - available,
        )
    return available // per_block


def _ways_to_more_memory(device: torch.device) -> str:
    if device.type == "cpu":
        return "Free memory on this machine, or take a larger one."
    return "Free memory on it, raise --gpu-memory-utilization, or take a larger GPU. Nothing is ever moved to the CPU."


def _check_room_for_pool(needed: int, available: int) -> None:
    if needed > available:
        raise NotEnoughMemoryError(
            f"the K/V pool that was asked for needs {gib(needed)} and {gib(available)} of memory are available: "
            f"{gib(needed - available)} are missing. Lower --kv-cache-memory-bytes or --num-kv-blocks.",
            missing_bytes=needed - available,
        )
