"""Builds a model and fills it with a folder's weights, or with noise; quantizes matrix by matrix as they come.

Everything lies on one device or loading fails and says how much memory is missing; nothing is ever moved aside to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from glmserve.layers.linear import Linear
from glmserve.layers.quantization import QuantizedRows
from glmserve.models.registry import Model, Target
from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import ModelLoadError
from glmserve.runner.parameters import ModelParameters
from glmserve.runner.released_matrices import ReleasedMatrices
from glmserve.runner.soft_tokens import prefix_tensors
from glmserve.runner.weight_files import tensors_of, weight_files

Progress = Callable[[str], None]


def kept_on(device: torch.device, spec: ModelSpec) -> ModelSpec:
    """`spec` with the formats that matrices are kept in there: packed on a GPU; plain on a CPU, whose plain product is its fastest.

    The numbers are the same either way.
    """
    return spec if device.type == "cuda" else replace(spec, layer_format="none", head_format="none")


def build_model(
    model_class: Callable[[ModelSpec, torch.device], Model], spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> Model:
    """A model with uninitialised parameters on `device`: those that are not packed in `dtype`."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return model_class(spec, device)
    finally:
        torch.set_default_dtype(previous)


def parameter_bytes(
    model_class: Callable[[ModelSpec, torch.device], Model], spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> int:
    """Bytes of all parameters on `device`, found without allocating any; an lm_head that is the embedding counts once."""
    model = build_model(model_class, kept_on(device, spec), torch.device("meta"), dtype)
    total = sum(parameter.nbytes for _, parameter in model.named_parameters())
    shared = spec.vocab_size * spec.hidden_size * dtype.itemsize if spec.head_format == "none" else 0
    return total - shared


def fill_with_noise(model: Model, spec: ModelSpec, seed: int) -> None:
    """Random weights of the config's shape, for benchmarks: products keep a sensible size, norms are the identity."""
    parameters = ModelParameters(model, spec)
    for index, (name, parameter) in enumerate(parameters.by_name.items()):
        generator = torch.Generator(device=parameter.device).manual_seed(seed * 1000 + index)
        if "norm" in name:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif parameters.is_quantized(name):
            parameters.write_noise(name, parameters.shape_of(name)[-1] ** -0.5, generator)
        else:
            scale = 0.02 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, scale, generator=generator)


def load_weights(model: Model, spec: ModelSpec, folder: Path, progress: Progress, ptuning_checkpoint: Path | None = None) -> None:
    """Copy the folder's tensors into the model, shard by shard, rounded to the formats of `spec`; then those of a P-Tuning checkpoint.

    Raises ModelLoadError for missing or truncated shards, tensors of a wrong shape, and parameters that no shard filled.
    """
    parameters, released = ModelParameters(model, spec), ReleasedMatrices(spec.released_bits)
    shards = weight_files(folder)
    for number, shard in enumerate(shards, 1):
        progress(f"loading weights, file {number} of {len(shards)}: {shard.name}")
        for name, tensor in tensors_of(shard):
            joined = released.join(name, tensor, shard)
            if joined is not None and (target := model.target_of(joined[0])) is not None:
                _write(parameters, target, *joined, shard)
    released.check_complete(folder)
    for name, tensor, shard in prefix_tensors(ptuning_checkpoint) if ptuning_checkpoint else ():
        if (target := model.target_of(name)) is not None:
            _write(parameters, target, name, tensor, shard)
    _tie_output_layer(model, spec, parameters)
    unfilled = [name for name, rows in parameters.missing_rows.items() if rows > 0]
    if unfilled:
        raise ModelLoadError(
            f"{folder} lacks the weights of {len(unfilled)} parameters, among them {unfilled[0]}. "
            f"Its weight files are {', '.join(shard.name for shard in shards)}; download what is missing."
        )


def _write(parameters: ModelParameters, target: Target, name: str, values: torch.Tensor | QuantizedRows, shard: Path) -> None:
    if target.parameter not in parameters.by_name:
        raise ModelLoadError(f"{shard} holds {name!r}, which this model does not have. Is config.json that of another model?")
    expected = parameters.shape_of(target.parameter, target.rows)
    if list(values.shape) != expected:
        raise ModelLoadError(
            f"{name!r} in {shard} has shape {list(values.shape)}, but config.json asks for {expected}. "
            "Weights and config.json belong to different models."
        )
    if target.reorder is not None:
        values = QuantizedRows(*map(target.reorder, values)) if isinstance(values, QuantizedRows) else target.reorder(values)
    parameters.write(target.parameter, values, target.first_row)


def pack_for_cpu(model: Model) -> None:
    """Lay the matrices of a float32 model on a CPU out for the fastest product; elsewhere nothing changes."""
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.pack_for_cpu(keep_weight=name == "lm_head")  # its weight may be the embedding too


def _tie_output_layer(model: Model, spec: ModelSpec, parameters: ModelParameters) -> None:
    """Share the embedding with lm_head where the checkpoint has no lm_head, or holds two equal tensors.

    The released stack ties them whatever the checkpoint holds; a checkpoint whose lm_head differs was made untied, so it is used.
    An lm_head that is rounded is a tensor of its own, made from the embedding.
    """
    embedding = parameters.by_name.get("word_embeddings", parameters.by_name.get("embed_tokens"))
    if embedding is None or list(embedding.shape) != parameters.shape_of("lm_head.weight"):
        return
    absent = parameters.missing_rows["lm_head.weight"] > 0
    if absent and spec.tie_word_embeddings and parameters.is_quantized("lm_head.weight"):
        parameters.write("lm_head.weight", embedding)
    elif (absent and spec.tie_word_embeddings) or (not absent and _are_equal(embedding, model.lm_head.weight)):
        model.lm_head.weight = cast(nn.Parameter, embedding)
        parameters.missing_rows["lm_head.weight"] = 0


def _are_equal(embedding: torch.Tensor, lm_head: torch.Tensor) -> bool:
    return embedding.dtype == lm_head.dtype and torch.equal(embedding, lm_head)
