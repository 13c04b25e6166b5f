"""Brings together the two tensors that a quantized matrix has in a released checkpoint: `X.weight` (int8) and `X.weight_scale`."""

from __future__ import annotations

from pathlib import Path

import torch

from glmserve.layers.quantization import QuantizedRows, released_rows
from glmserve.protocol.errors import ModelLoadError

_SCALE = "_scale"


class ReleasedMatrices:
    """`bits`: config.json's quantization_bit, 0 where it has none."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._halves: dict[str, torch.Tensor] = {}  # the one that came first, by its own name

    def join(self, name: str, tensor: torch.Tensor, shard: Path) -> tuple[str, torch.Tensor | QuantizedRows] | None:
        """What the model gets for this tensor; None while its other half is to come.  Raises ModelLoadError for what cannot be."""
        is_scale = name.endswith(".weight" + _SCALE)
        if not is_scale and not (tensor.dtype == torch.int8 and name.endswith(".weight")):
            return name, tensor
        if not self._bits:
            raise ModelLoadError(
                f"{shard} holds quantized weights ({name!r}), but config.json has no quantization_bit. "
                "Take the config.json that came with these weights."
            )
        matrix = name.removesuffix(_SCALE)
        other = self._halves.pop(matrix if is_scale else matrix + _SCALE, None)
        if other is None:
            self._halves[name] = tensor
            return None
        packed, scale = (other, tensor) if is_scale else (tensor, other)
        if packed.dim() != 2 or scale.shape != packed.shape[:1] or not scale.is_floating_point():
            raise ModelLoadError(
                f"{matrix!r} has shape {list(packed.shape)} and its scales {list(scale.shape)} ({scale.dtype}) in {shard}, "
                "but there must be one scale a row. Download the file again."
            )
        return matrix, released_rows(packed, scale, self._bits)

    def check_complete(self, folder: Path) -> None:
        """Raises ModelLoadError where one half never came."""
        for name in self._halves:
            absent = name.removesuffix(_SCALE) if name.endswith(_SCALE) else name + _SCALE
            raise ModelLoadError(f"{folder} has {name!r} but not {absent!r}, which belongs to it. Download what is missing.")
