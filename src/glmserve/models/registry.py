"""The torch class of each family, and what every such class offers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from glmserve.layers.attention import AttentionMetadata, LayerCache, NewestTokens
from glmserve.layers.linear import Linear
from glmserve.layers.quantized_linear import QuantizedLinear
from glmserve.layers.rotary import RotaryTable
from glmserve.models.catalog import family_of
from glmserve.models.spec import ModelSpec, read_config


@dataclass(frozen=True)
class Target:
    """Where a checkpoint tensor goes: `num_rows` rows of a parameter from `first_row` on (all of it by default), after `reorder`."""

    parameter: str
    first_row: int = 0
    num_rows: int | None = None
    reorder: Callable[[torch.Tensor], torch.Tensor] | None = None

    def rows_of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The part of the parameter that the tensor fills."""
        return parameter[self.rows]

    @property
    def rows(self) -> slice:
        """Which rows of the parameter the tensor fills."""
        return slice(self.first_row, None if self.num_rows is None else self.first_row + self.num_rows)


class Model(Protocol):
    """What the runner needs of a model; families inherit torch.nn.Module and have this shape."""

    rotary: RotaryTable
    lm_head: Linear | QuantizedLinear

    def __call__(self, token_ids: torch.Tensor, metadata: AttentionMetadata, caches: list[LayerCache]) -> torch.Tensor:
        """Hidden states [num_tokens, hidden_size] of a step."""

    def prefill(
        self, token_ids: torch.Tensor, metadata: AttentionMetadata, caches: list[LayerCache], newest: NewestTokens | None
    ) -> torch.Tensor | None:
        """Store the K and V of a prefill step; hidden states [num_sampling, hidden_size] of the newest tokens where it samples."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] -> [num_rows, vocab_size]."""

    def finish_loading(self) -> None:
        """Called once, when all weights are there."""

    def take_soft_tokens(self) -> torch.Tensor | None:
        """Trained keys and values for the front of every sequence, [num_soft_tokens, num_layers, 2, num_kv_heads, head_dim], once."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As torch.nn.Module has it."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As torch.nn.Module has it."""

    def target_of(self, name: str) -> Target | None:
        """Where the checkpoint tensor `name` goes; None where it is to be ignored."""


def model_class(folder: Path) -> Callable[[ModelSpec, torch.device], Model]:
    """The class that the model folder's config.json asks for.  Raises ModelLoadError for an unknown model_type."""
    module, _, name = family_of(read_config(folder), folder).model_class.partition(":")
    return cast(Callable[[ModelSpec, torch.device], Model], getattr(importlib.import_module(module), name))
