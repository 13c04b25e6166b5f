"""A model folder as it lies on the disk: its config, and what the model would need.  No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from glmserve.models.catalog import read_spec
from glmserve.models.floor import head_values, layer_values
from glmserve.models.spec import ModelSpec, read_config
from glmserve.protocol.errors import ModelLoadError
from glmserve.tools.doctor.finding import NotApplicableError
from glmserve.tools.doctor.weight_files import WeightFiles, weight_files

BYTES_OF = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Needs:
    """Bytes: all weights, and the keys and values of one full context."""

    weights: int
    one_context: int


class ModelFolder:
    """What is in a folder; read when asked for, and only once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def weights(self) -> WeightFiles:
        """Its weight files."""
        return weight_files(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; empty where it cannot be read."""
        try:
            return read_config(self.path)
        except ModelLoadError:
            return {}

    def spec(self) -> ModelSpec:
        """The facts of the model.  Raises ModelLoadError as the server would."""
        return read_spec(self.path)

    def usable_spec(self) -> ModelSpec:
        """The same for checks that need it.  Raises NotApplicableError."""
        try:
            return self.spec()
        except ModelLoadError:
            raise NotApplicableError("config.json cannot be used (see the check `config`)") from None

    @property
    def quantization_bits(self) -> int:
        """Bits a weight of a released int4 or int8 checkpoint; 0 for a plain one."""
        bits = self.config.get("quantization_bit")
        return bits if isinstance(bits, int) else 0

    def needs(self, on_gpu: bool) -> Needs:
        """As served without further flags: the checkpoint's own numbers on a GPU, float32 on a CPU.  Raises NotApplicableError."""
        spec = self.usable_spec()
        width = BYTES_OF.get(spec.torch_dtype, 2) if on_gpu else 4
        layers: float = layer_values(spec) * width
        if on_gpu and self.quantization_bits:
            layers = layer_values(spec) * self.quantization_bits / 8
        heads = head_values(spec) * width * (1 if spec.tie_word_embeddings else 2)
        return Needs(int(layers) + heads, spec.kv_values_per_token * spec.max_model_len * width)

    def half_precision_bytes(self) -> int:
        """Bytes of all weights with 16 bits each.  Raises NotApplicableError."""
        spec = self.usable_spec()
        return 2 * (layer_values(spec) + head_values(spec))
