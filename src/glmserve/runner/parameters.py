"""A model's parameters as the loader fills them: rows of plain numbers go in, rounded and packed where the spec asks for that."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from glmserve.layers.linear import Linear
from glmserve.layers.quantization import QuantizedRows, quantize_rows
from glmserve.layers.quantized_linear import QuantizedLinear
from glmserve.models.registry import Model
from glmserve.models.spec import ModelSpec
from glmserve.protocol.weight_format import WeightFormat

_NUMBERS_AT_ONCE = 2**24  # of a matrix while it is rounded: 64 MiB in float32


class ModelParameters:
    """`spec` names the formats that matrices are rounded to; whether they stay packed is for the model's layers, which exist already.

    `missing_rows` counts what nobody has written, by parameter.
    """

    def __init__(self, model: Model, spec: ModelSpec) -> None:
        self.by_name: dict[str, torch.Tensor] = {}
        self._scales: dict[str, torch.Tensor] = {}  # by the name of the packed weight
        self._formats: dict[str, WeightFormat] = {}
        self._columns: dict[str, int] = {}
        self._by_twos: dict[str, bool] = {}
        scale_names = set()
        for name, module in model.named_modules():
            if isinstance(module, (Linear, QuantizedLinear)):
                self._formats[f"{name}.weight"] = spec.head_format if name == "lm_head" else spec.layer_format
                self._columns[f"{name}.weight"] = module.in_features
            if isinstance(module, QuantizedLinear):
                self._by_twos[f"{name}.weight"] = module.scaled_by_twos
                self._scales[f"{name}.weight"] = module.scale
                scale_names.add(f"{name}.scale")
        self.by_name = {name: parameter for name, parameter in model.named_parameters() if name not in scale_names}
        self.missing_rows = {name: parameter.shape[0] for name, parameter in self.by_name.items()}

    def shape_of(self, name: str, rows: slice = slice(None)) -> list[int]:
        """The shape of the plain numbers that these rows hold."""
        shape = list(self.by_name[name][rows].shape)
        return [shape[0], self._columns[name]] if name in self._columns else shape

    def is_quantized(self, name: str) -> bool:
        """Whether its numbers are rounded to a format."""
        return self._formats.get(name, "none") != "none"

    def write(self, name: str, values: torch.Tensor | QuantizedRows, first_row: int = 0) -> None:
        """Put `values`, numbers of any float dtype or rows of a format, into the parameter from `first_row` on."""
        parameter, weight_format = self.by_name[name], self._formats.get(name, "none")
        num_rows = values.weight.shape[0] if isinstance(values, QuantizedRows) else values.shape[0]
        self.missing_rows[name] -= num_rows
        if isinstance(values, torch.Tensor) and weight_format == "none":
            parameter[first_row : first_row + num_rows].copy_(values)
            return
        for start, part in _in_parts(values):
            part = part.to(parameter.device) if isinstance(part, torch.Tensor) else QuantizedRows(*(t.to(parameter.device) for t in part))
            if isinstance(part, QuantizedRows) and not part.is_of(weight_format):
                part = part.dequantize(torch.float32)
            packed = part if isinstance(part, QuantizedRows) else quantize_rows(part, weight_format, self._by_twos.get(name, False))
            self._write_packed(name, first_row + start, packed)

    def write_noise(self, name: str, std: float, generator: torch.Generator) -> None:
        """Fill a quantized matrix with rounded normal numbers."""
        num_rows, columns = self.shape_of(name)
        step = _rows_at_once(columns)
        for start in range(0, num_rows, step):
            noise = torch.empty((min(step, num_rows - start), columns), dtype=torch.float32, device=self.by_name[name].device)
            self.write(name, noise.normal_(0.0, std, generator=generator), start)

    def _write_packed(self, name: str, first_row: int, values: QuantizedRows) -> None:
        parameter, scale = self.by_name[name], self._scales.get(name)
        rows = slice(first_row, first_row + values.weight.shape[0])
        if scale is None:
            parameter[rows].copy_(values.dequantize(parameter.dtype))
            return
        parameter[rows].copy_(values.weight)
        scale[rows].copy_(values.scale)


def _in_parts(values: torch.Tensor | QuantizedRows) -> Iterator[tuple[int, torch.Tensor | QuantizedRows]]:
    """(first row, rows), few enough at a time that what is made of them meanwhile stays small."""
    weight = values.weight if isinstance(values, QuantizedRows) else values
    step = _rows_at_once(weight.shape[1])
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        yield start, QuantizedRows(values.weight[rows], values.scale[rows]) if isinstance(values, QuantizedRows) else values[rows]


def _rows_at_once(columns: int) -> int:
    return max(1, _NUMBERS_AT_ONCE // columns)
