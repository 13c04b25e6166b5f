"""The weight files of a model folder: safetensors or torch .bin shards, read without running any code of theirs."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from glmserve.models.lfs import how_to_get_again, is_lfs_pointer
from glmserve.protocol.errors import ModelLoadError


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files in order, safetensors before .bin.  Raises ModelLoadError that names the missing ones."""
    if not folder.is_dir():
        raise ModelLoadError(f"there is no folder {folder}: name the one that holds the weights.")
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.exists():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise ModelLoadError(f"{index} cannot be read ({error}). {how_to_get_again(index)}") from error
            absent = [name for name in names if not (folder / name).exists()]
            if absent:
                raise ModelLoadError(f"{folder} lacks {len(absent)} of {len(names)} weight files: {', '.join(absent)}. Download them.")
            return [folder / name for name in names]
        found = sorted(folder.glob(f"{stem}*.{suffix}"))
        if found:
            return found
    raise ModelLoadError(f"{folder} has no weights: neither model*.safetensors nor pytorch_model*.bin. Download them into this folder.")


def tensors_of(shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of one file, on the CPU.  Raises ModelLoadError for a file that is truncated or no weight file."""
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
        if is_lfs_pointer(shard):
            raise ModelLoadError(f"{shard} cannot be read. {how_to_get_again(shard)}") from error
        raise ModelLoadError(f"{shard} cannot be read: {str(error).splitlines()[0]}. It may be truncated; download it again.") from error
