"""All that lies between the attention of one ChatGLM layer and that of the next, in one launch: for steps of few rows on Hopper.

That is: dense product, LayerNorm, up product with GELU, down product, LayerNorm, q|k|v product.  As kernels of their own each of the six
fills and empties the memory's pipe, about 2.5 us each time; here the weights of all four products stream without a stop
(docs/decisions/layer-stream.md).  Gluon changes with Triton's releases, so this serves the one it is tested with; all else takes the
kernels of their own.  Twin: `layer_stream_torch`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from glmserve.kernels.activation import gelu_tanh_torch
from glmserve.kernels.backend import next_power_of_2, use_triton
from glmserve.kernels.gluon_backend import HAS_GLUON, is_hopper, num_multiprocessors
from glmserve.kernels.layer_stream_kernel import boxes, layer_stream_kernel
from glmserve.kernels.layer_stream_meetings import NUM_COUNTERS
from glmserve.kernels.norm import Summands, residual_layer_norm_scaled_torch, residual_layer_norm_torch
from glmserve.kernels.scaled_rows import TILE, ScaledRows, scale_tiles_torch

_MOST_ROWS = 64
_HIDDEN_SIZE, _INNER_SIZE = 4096, 16384  # ChatGLM-6B's, which 128 programs share without a rest
_PROGRAMS = 128  # a power of two, for the counters
_SPLITS = 4  # of the columns of the products that have fewer tiles than programs
_HEIGHTS = (128, 128, 128, 32)  # weight rows of a box; a program has 96 of q|k|v, so three boxes
_BOXES = 2  # a stage's, of 128 bytes of each weight row
_IN_FLIGHT = 2  # stages of weights on their way: more make all else wait in the memory's queue
_HELD = {8: (4, 4), 16: (4, 4), 32: (5, 2), 64: (3, 1)}  # by rows: stages held in registers, in 16 bits and fp8; more spill or bring little
# By rows, in 16 bits and fp8: stages that come one by one after a product that a LayerNorm follows, and after GELU.  All measured.
_CALM, _CALM_AFTER_GELU = {8: (6, 6), 16: (6, 6), 32: (6, 6), 64: (8, 6)}, {8: (0, 0), 16: (0, 0), 32: (0, 6), 64: (0, 6)}
_FETCH_REGISTERS, _MEAN_REGISTERS = 24, 168


class Product(NamedTuple):
    """weight: [out_features, in_features] in 16 bits, or float8_e4m3fn with `scale` float32 [out_features, 1]; bias: [out_features]."""

    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor

    def of_outputs(self, outputs: slice) -> Product:
        """That of some outputs."""
        return Product(self.weight[outputs], None if self.scale is None else self.scale[outputs], self.bias[outputs])


class Norm(NamedTuple):
    """A LayerNorm's weight and bias, [hidden_size] each."""

    weight: torch.Tensor
    bias: torch.Tensor


class Stretch(NamedTuple):
    """What lies between two attentions: of one layer all after its attention, of the next all before.

    After the last layer there is no q|k|v, and `next_norm` is the model's final one.
    """

    dense: Product
    norm: Norm
    up: Product
    down: Product
    next_norm: Norm
    qkv: Product | None
    alpha: float
    epsilon: float


def serves_layer_stream(residual: torch.Tensor, dense: torch.Tensor, inner_size: int) -> bool:
    """Whether `layer_stream` serves these rows, [rows, hidden_size].  dense: the weight of that product, [hidden_size, hidden_size]."""
    fits = dense.shape[0] == _HIDDEN_SIZE and inner_size == _INNER_SIZE
    few = residual.shape[0] <= _MOST_ROWS
    half = residual.dtype in (torch.float16, torch.bfloat16)  # float32 would not fit in shared memory
    streams = half and dense.dtype in (residual.dtype, torch.float8_e4m3fn) and HAS_GLUON
    return fits and few and streams and use_triton(dense) and is_hopper(dense.device) and num_multiprocessors(dense.device) >= _PROGRAMS


def layer_stream(mixed: torch.Tensor | ScaledRows, residual: torch.Tensor, layer: Stretch) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(q|k|v of the next layer [rows, 3 * hidden_size], its normalised input [rows, hidden_size]); None for q|k|v after the last layer.

    mixed: [rows, hidden_size], what attention gave; with fp8 weights rounded by tiles; residual: [rows, hidden_size], the normalised input
    of the layer.  Source: GLMBlock in modeling_chatglm.py.
    """
    rows, hidden_size = residual.shape
    inner_size, scaled = layer.up.weight.shape[0], isinstance(mixed, ScaledRows)
    values = mixed.values if isinstance(mixed, ScaledRows) else mixed
    middle, next_residual = torch.empty_like(residual), torch.empty_like(residual)
    active = values.new_empty((rows, inner_size))
    normed, following = (torch.empty_like(values), torch.empty_like(values)) if scaled else (middle, next_residual)
    new = functools.partial(torch.empty, dtype=torch.float32, device=residual.device)
    scales = [new(0)] * 4
    if isinstance(mixed, ScaledRows):
        scales = [mixed.scale, new(rows), new((rows, inner_size // TILE)), new(rows)]
    qkv = None if layer.qkv is None else residual.new_empty((rows, 3 * hidden_size))
    padded = max(8, next_power_of_2(rows))
    products = (layer.dense, layer.up, layer.down, layer.qkv or layer.dense)  # a kernel takes a pointer also for what it will not read
    columns = 128 // values.element_size()
    stages, row_stages = (5, 3) if padded > 32 else (6, 3)  # what fits in shared memory; from 17 rows on in fp8 3 KB are left
    layer_stream_kernel[(_PROGRAMS,)](
        *(boxes(x, padded, columns) for x in (values, normed, active, following)),
        *(boxes(product.weight, height, columns) for product, height in zip(products, _HEIGHTS, strict=True)),
        *scales, *(scales[0] if product.scale is None else product.scale for product in products),
        *(product.bias for product in products), *layer.norm, *layer.next_norm,
        residual, middle, normed, active, next_residual, following, residual if qkv is None else qkv,
        new((_SPLITS, rows, hidden_size)), _meetings(residual.device), rows, int(qkv is not None), layer.alpha, layer.epsilon,
        HIDDEN=hidden_size, INNER=inner_size, SPLITS=_SPLITS, BOXES=_BOXES, STAGES=stages, ROW_STAGES=row_stages, IN_FLIGHT=_IN_FLIGHT,
        CALM=_CALM[padded][scaled], CALM_AFTER_GELU=_CALM_AFTER_GELU[padded][scaled], HELD=_HELD[padded][scaled], SCALED=scaled,
        FETCH_REGISTERS=_FETCH_REGISTERS,
        num_warps=8, maxnreg=_MEAN_REGISTERS, launch_pdl=True,
    )  # fmt: skip
    return qkv, next_residual


def layer_stream_torch(
    mixed: torch.Tensor | ScaledRows, residual: torch.Tensor, layer: Stretch
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The plain twin, which rounds where the kernel does: `residual`'s dtype between the steps, fp8 in front of fp8 products."""
    dtype, scaled = residual.dtype, isinstance(mixed, ScaledRows)
    normalise = residual_layer_norm_scaled_torch if scaled else _layer_norm_torch
    middle, rows = normalise(_times(mixed, layer.dense), residual, layer.alpha, *layer.norm, layer.epsilon)
    active = gelu_tanh_torch(_times(rows, layer.up).total())
    down = _times(scale_tiles_torch(active) if scaled else active.to(dtype), layer.down)
    following, rows = normalise(down, middle, layer.alpha, *layer.next_norm, layer.epsilon)
    return None if layer.qkv is None else _times(rows, layer.qkv).total().to(dtype), following


def _layer_norm_torch(
    x: Summands, residual: torch.Tensor, alpha: float, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    normed = residual_layer_norm_torch(x, residual, alpha, weight, bias, epsilon)
    return normed, normed


def _times(rows: torch.Tensor | ScaledRows, product: Product) -> Summands:
    numbers = rows.numbers() if isinstance(rows, ScaledRows) else rows.float()
    weight = product.weight.float() if product.scale is None else product.weight.float() * product.scale
    return Summands((numbers @ weight.t())[None], product.bias)


@functools.cache
def _meetings(on: torch.device) -> torch.Tensor:
    """The counters that programs meet at.  One set serves every launch in a stream: of a counter only the difference counts.

    Launches of two streams would count on the same ones, and each could hold multiprocessors that the other waits for.
    """
    return torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=on)
