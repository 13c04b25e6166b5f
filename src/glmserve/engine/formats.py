"""Which formats weights and K/V get: what the settings ask for, what the checkpoint is, and what the device can do."""

from __future__ import annotations

from dataclasses import replace

import torch

from glmserve.config import EngineConfig
from glmserve.layers.quantization import packed_columns
from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import ModelLoadError

_FIRST_WITH_FP8 = (8, 9)  # Ada and Hopper


def with_formats(config: EngineConfig, spec: ModelSpec, device: torch.device) -> ModelSpec:
    """`spec` with the formats that the matrices' numbers are to have.  Raises ModelLoadError for what cannot be.

    A released int8 or int4 checkpoint stays what it is unless something else is asked for.  Other numbers are rounded while they load: the
    matrices of the layers to the format asked for, the output layer to 8 bits.  The rows of the embedding stay plain: a step reads but a
    few of them.
    """
    asked = config.quantization
    if asked == "auto" or (spec.released_bits and asked == spec.layer_format):
        return spec
    if asked == "none":  # a released checkpoint's numbers, kept as plain ones
        return replace(spec, layer_format="none", head_format="none")
    if spec.released_bits == 4:
        raise ModelLoadError(
            f"--quantization {asked}, but this checkpoint has 4 bits already (quantization_bit in config.json), and more would not bring "
            "back what it lost. Leave the flag out, or take the checkpoint that is not quantized."
        )
    if asked == "fp8":
        _check_fp8(device, "--quantization fp8", "--quantization int8")
    spec = replace(spec, layer_format=asked, head_format="fp8" if asked == "fp8" else "int8")
    _check_columns(spec)
    return spec


def kv_cache_dtype(config: EngineConfig, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of K and V; `dtype` is the model's.  Raises ModelLoadError where the device cannot."""
    if config.kv_cache_dtype == "auto":
        return dtype
    _check_fp8(device, "--kv-cache-dtype fp8", "--kv-cache-dtype auto")
    return torch.float8_e4m3fn


def _check_fp8(device: torch.device, flag: str, instead: str) -> None:
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < _FIRST_WITH_FP8:
        raise ModelLoadError(
            f"{flag}: {torch.cuda.get_device_name(device)} (sm_{capability[0]}{capability[1]}) has no 8-bit floats; "
            f"they came with sm_89. Use {instead}."
        )


def _check_columns(spec: ModelSpec) -> None:
    try:
        for columns in (spec.hidden_size, spec.num_heads * spec.head_dim, spec.intermediate_size):
            packed_columns(spec.layer_format, columns)
    except ValueError as error:
        raise ModelLoadError(f"--quantization {spec.layer_format}: {error}") from error
