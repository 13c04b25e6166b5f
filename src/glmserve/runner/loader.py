"""Fills a model with a folder's weights: safetensors or torch .bin shards, read without running any code of theirs.

Everything lies on one device or loading fails and says how much memory is missing; nothing is ever moved aside to the CPU.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from glmserve.layers.linear import Linear
from glmserve.models.registry import Model
from glmserve.models.spec import ModelSpec
from glmserve.protocol.errors import ModelLoadError

Progress = Callable[[str], None]


def build_model(
    model_class: Callable[[ModelSpec, torch.device], Model], spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> Model:
    """A model with uninitialised parameters of `dtype` on `device`."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return model_class(spec, device)
    finally:
        torch.set_default_dtype(previous)


def parameter_bytes(model_class: Callable[[ModelSpec, torch.device], Model], spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of all parameters, found without allocating any; an lm_head that is the embedding counts once."""
    model = build_model(model_class, spec, torch.device("meta"), dtype)
    total = sum(parameter.nbytes for _, parameter in model.named_parameters())
    return total - spec.vocab_size * spec.hidden_size * dtype.itemsize


def fill_with_noise(model: Model, seed: int) -> None:
    """Random weights of the config's shape, for benchmarks: products keep a sensible size, norms are the identity."""
    for index, (name, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator(device=parameter.device).manual_seed(seed * 1000 + index)
        if "norm" in name:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            scale = 0.02 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, scale, generator=generator)


def load_weights(model: Model, spec: ModelSpec, folder: Path, progress: Progress) -> None:
    """Copy the folder's tensors into the model, shard by shard.

    Raises ModelLoadError for missing or truncated shards, tensors of a wrong shape, and parameters that no shard filled.
    """
    parameters = dict(model.named_parameters())
    missing_rows = {name: parameter.shape[0] for name, parameter in parameters.items()}
    shards = weight_files(folder)
    for number, shard in enumerate(shards, 1):
        progress(f"loading weights, file {number} of {len(shards)}: {shard.name}")
        for name, tensor in _tensors_of(shard):
            target = model.target_of(name)
            if target is None:
                continue
            if target.parameter not in parameters:
                raise ModelLoadError(f"{shard} holds {name!r}, which this model does not have. Is config.json that of another model?")
            rows = target.rows_of(parameters[target.parameter])
            if rows.shape != tensor.shape:
                raise ModelLoadError(
                    f"{name!r} in {shard} has shape {list(tensor.shape)}, but config.json asks for {list(rows.shape)}. "
                    "Weights and config.json belong to different models."
                )
            rows.copy_(tensor if target.reorder is None else target.reorder(tensor))
            missing_rows[target.parameter] -= tensor.shape[0]
    _tie_output_layer(model, spec, missing_rows)
    unfilled = [name for name, rows in missing_rows.items() if rows > 0]
    if unfilled:
        raise ModelLoadError(
            f"{folder} lacks the weights of {len(unfilled)} parameters, among them {unfilled[0]}. "
            f"Its weight files are {', '.join(shard.name for shard in shards)}; download what is missing."
        )


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files in order, safetensors before .bin.  Raises ModelLoadError that names the missing ones."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.exists():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise ModelLoadError(f"{index} cannot be read ({error}). Download it again.") from error
            absent = [name for name in names if not (folder / name).exists()]
            if absent:
                raise ModelLoadError(f"{folder} lacks {len(absent)} of {len(names)} weight files: {', '.join(absent)}. Download them.")
            return [folder / name for name in names]
        found = sorted(folder.glob(f"{stem}*.{suffix}"))
        if found:
            return found
    raise ModelLoadError(f"{folder} has no weights: neither model*.safetensors nor pytorch_model*.bin. Download them into this folder.")


def _tensors_of(shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        if shard.suffix == ".safetensors":
            with safe_open(shard, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dict)
                    yield name, tensors.get_tensor(name)
        else:
            content = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
                raise ModelLoadError(f"{shard} holds no tensors by name, so it is not a weight file. Download it again.")
            yield from content.items()
    except (SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelLoadError(f"{shard} cannot be read: {str(error).splitlines()[0]}. It may be truncated; download it again.") from error


def pack_for_cpu(model: Model) -> None:
    """Lay the matrices of a float32 model on a CPU out for the fastest product; elsewhere nothing changes."""
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.pack_for_cpu(keep_weight=name == "lm_head")  # its weight may be the embedding too


def _tie_output_layer(model: Model, spec: ModelSpec, missing_rows: dict[str, int]) -> None:
    """Share the embedding with lm_head where the checkpoint has no lm_head, or holds two equal tensors.

    The released stack ties them whatever the checkpoint holds; a checkpoint whose lm_head differs was made untied, so it is used.
    """
    parameters = dict(model.named_parameters())
    embedding = parameters.get("word_embeddings", parameters.get("embed_tokens"))
    lm_head = model.lm_head.weight
    if embedding is None or embedding.shape != lm_head.shape:
        return
    absent = missing_rows["lm_head.weight"] > 0
    if (absent and spec.tie_word_embeddings) or (not absent and torch.equal(embedding, lm_head)):
        model.lm_head.weight = embedding
        missing_rows["lm_head.weight"] = 0
