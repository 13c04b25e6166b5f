"""Products of fp8 rows and an fp8 weight through cuBLASLt, where torch has no word for what is wanted of it.

Two things: a form of the product that is fast for seconds and not for a moment, and one that finishes the numbers as it writes, with GELU
in fp8 where that is wanted (docs/decisions/fp8-prompts.md).  The library is the one that torch has loaded.  Twins: `levels_product_torch`,
`finished_product_torch`.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch

from glmserve.kernels.activation import gelu_tanh_torch
from glmserve.kernels.backend import use_triton
from glmserve.kernels.gluon_backend import is_hopper

_MULTIPLE = 16  # of outputs and width: what cuBLASLt takes of fp8
_ALIGNMENT = 16  # bytes
_FEWEST_LASTING_ROWS = 8192
_LASTING_TILE = 24  # CUBLASLT_MATMUL_TILE_256x128: 256 outputs of 128 rows
_MOST_FORMS = 16
# Of cudaDataType_t, cublasComputeType_t and cublasLtEpilogue_t.
_KINDS = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14, torch.float8_e4m3fn: 28}
_COMPUTE_FLOAT32, _ADDING_BIAS, _GELU_AFTER_BIAS = 68, 4, 36
# Of cublasLtMatmulDescAttributes_t.
_TRANSPOSE_FIRST, _EPILOGUE, _BIAS, _FIRST_SCALE, _SECOND_SCALE, _OUT_SCALE, _FAST_ACCUMULATION, _BIAS_KIND = 3, 7, 8, 17, 18, 20, 25, 26
_COLUMNS = 3  # of cublasLtMatrixLayoutAttribute_t
_MOST_WORKSPACE = 1  # of cublasLtMatmulPreferenceAttributes_t
_TILE = 1  # of cublasLtMatmulAlgoConfigAttributes_t


class Finish(NamedTuple):
    """What turns a product of levels into numbers; scales are float32 tensors of one number.

    They are levels * row_scale * weight_scale + bias, in the bias' dtype; with gelu_factor the levels of their tanh GELU, which stand for
    levels / gelu_factor.  bias: [outputs] in float16 or bfloat16.
    """

    row_scale: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor
    gelu_factor: torch.Tensor | None = None


class _Form(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def serves_blas_product(levels: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the products here serve fp8 levels [rows, width] and an fp8 weight [outputs, width]: on Hopper, where they were measured."""
    if not use_triton(levels) or not is_hopper(levels.device) or _library() is None:
        return False
    whole = weight.shape[0] % _MULTIPLE == 0 and weight.shape[1] % _MULTIPLE == 0
    return whole and all(tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0 for tensor in (levels, weight))


def lasts(rows: int) -> bool:
    """Whether so many rows keep a GPU at its limit of power, where `levels_product` is faster than torch's."""
    return rows >= _FEWEST_LASTING_ROWS


def levels_product(levels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """levels weight^T in bfloat16 [rows, outputs], the sums added up fast.

    levels: float8_e4m3fn [rows, width]; weight: float8_e4m3fn [outputs, width].  Raises RuntimeError where cuBLASLt does not take it.
    Source: cuBLAS manual, "Using the cuBLASLt API".
    """
    out = levels.new_empty((levels.shape[0], weight.shape[0]), dtype=torch.bfloat16)
    _product(levels.device, *weight.shape, torch.bfloat16).run(levels, weight, out)
    return out


def levels_product_torch(levels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The plain twin of `levels_product`."""
    return (levels.float() @ weight.float().t()).bfloat16()


def finished_product(levels: torch.Tensor, weight: torch.Tensor, to: Finish) -> torch.Tensor:
    """The product's numbers, [rows, outputs] in 16 bits, or the float8_e4m3fn levels of their GELU.  Else as `levels_product`."""
    gelu = to.gelu_factor is not None
    out = torch.empty((levels.shape[0], weight.shape[0]), dtype=levels.dtype if gelu else to.bias.dtype, device=levels.device)
    product = _product(levels.device, *weight.shape, out.dtype, _GELU_AFTER_BIAS if gelu else _ADDING_BIAS, to.bias.dtype)
    product.finish(to)
    product.run(levels, weight, out)
    return out


def finished_product_torch(levels: torch.Tensor, weight: torch.Tensor, to: Finish) -> torch.Tensor:
    """The plain twin of `finished_product`."""
    numbers = (levels.float() @ weight.float().t()) * (to.row_scale * to.weight_scale) + to.bias.float()
    if to.gelu_factor is None:
        return numbers.to(to.bias.dtype)
    kept = torch.finfo(torch.float8_e4m3fn)
    return (gelu_tanh_torch(numbers) * to.gelu_factor).clamp(kept.min, kept.max).to(torch.float8_e4m3fn)


class _Product:
    """What cuBLASLt knows of a product but its number of rows.

    It stores by columns, so to it the result's transpose is the weight, transposed, times the rows' transpose.
    """

    def __init__(
        self, device: torch.device, outputs: int, width: int, out: torch.dtype, epilogue: int | None, bias: torch.dtype | None
    ) -> None:
        self._handle = _handle(device)
        self._description = _new("MatmulDesc", _COMPUTE_FLOAT32, _KINDS[torch.float32])
        self._set(_TRANSPOSE_FIRST, ctypes.c_int32(1))
        self._set(_FAST_ACCUMULATION, ctypes.c_int8(1))
        if epilogue is not None and bias is not None:
            self._set(_EPILOGUE, ctypes.c_uint32(epilogue))
            self._set(_BIAS_KIND, ctypes.c_int32(_KINDS[bias]))
        self._weight, self._rows = _layout(torch.float8_e4m3fn, width, outputs), _layout(torch.float8_e4m3fn, width, 1)
        self._out = _layout(out, outputs, 1)
        self._added = _layout(bias or out, outputs, 1)  # a matrix that is added 0 times, and has to be of 16 bits
        self._form = functools.lru_cache(maxsize=256)(self._find_form)

    def finish(self, to: Finish) -> None:
        """What the next run does with its numbers."""
        pointers = {_BIAS: to.bias, _FIRST_SCALE: to.weight_scale, _SECOND_SCALE: to.row_scale, _OUT_SCALE: to.gelu_factor}
        for attribute, tensor in pointers.items():
            if tensor is not None:
                self._set(attribute, ctypes.c_uint64(tensor.data_ptr()))

    def run(self, levels: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """Launch it in the current stream."""
        for layout in (self._rows, self._out, self._added):
            _set("MatrixLayout", layout, _COLUMNS, ctypes.c_uint64(levels.shape[0]))
        algorithm, to = self._form(levels.shape[0]).algorithm, ctypes.c_void_p(out.data_ptr())
        stream = ctypes.c_void_p(torch.cuda.current_stream(levels.device).cuda_stream)
        _call(
            "Matmul", self._handle, self._description, ctypes.byref(ctypes.c_float(1)), ctypes.c_void_p(weight.data_ptr()), self._weight,
            ctypes.c_void_p(levels.data_ptr()), self._rows, ctypes.byref(ctypes.c_float(0)), None, self._added, to, self._out,
            algorithm, None, ctypes.c_size_t(0), stream,
        )  # fmt: skip

    def _set(self, attribute: int, value: Any) -> None:
        _set("MatmulDesc", self._description, attribute, value)

    def _find_form(self, rows: int) -> _Form:
        """cuBLASLt's first that needs no workspace, or of many rows that with the lasting tile.  `rows`: what the layouts say."""
        forms, count = (_Form * _MOST_FORMS)(), ctypes.c_int()
        layouts = (self._weight, self._rows, self._added, self._out)
        _call(
            "MatmulAlgoGetHeuristic", self._handle, self._description, *layouts, _no_workspace(), _MOST_FORMS, forms, ctypes.byref(count)
        )  # fmt: skip
        if not count.value:
            raise RuntimeError(f"cuBLASLt has no form of a product of {rows} rows.")
        lasting = (form for form in forms[: count.value] if lasts(rows) and _tile_of(form) == _LASTING_TILE)
        return next(lasting, forms[0])


@functools.cache
def _product(
    device: torch.device, outputs: int, width: int, out: torch.dtype, epilogue: int | None = None, bias: torch.dtype | None = None
) -> _Product:
    return _Product(device, outputs, width, out, epilogue, bias)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """What torch has loaded; None where it has not, or has another version's."""
    version = (torch.version.cuda or "").split(".")[0]
    try:
        return ctypes.CDLL(f"libcublasLt.so.{version}")
    except OSError:
        return None


def _call(name: str, *arguments: Any) -> None:
    """A function by its name in cuBLASLt's manual, without `cublasLt`.  Raises RuntimeError with the status where there is one."""
    if status := getattr(_library(), f"cublasLt{name}")(*arguments):
        raise RuntimeError(f"cublasLt{name} failed with status {status}.")


def _new(kind: str, *arguments: Any) -> ctypes.c_void_p:
    """One that lives as long as the process."""
    made = ctypes.c_void_p()
    _call(f"{kind}Create", ctypes.byref(made), *arguments)
    return made


def _set(kind: str, of: ctypes.c_void_p, attribute: int, value: Any) -> None:
    _call(f"{kind}SetAttribute", of, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))


def _layout(dtype: torch.dtype, rows: int, columns: int) -> ctypes.c_void_p:
    """Of a dense matrix stored by columns."""
    return _new("MatrixLayout", _KINDS[dtype], ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))


@functools.cache
def _handle(device: torch.device) -> ctypes.c_void_p:
    with torch.cuda.device(device):
        handle = ctypes.c_void_p()
        _call("Create", ctypes.byref(handle))
        return handle


@functools.cache
def _no_workspace() -> ctypes.c_void_p:
    preference = _new("MatmulPreference")
    _set("MatmulPreference", preference, _MOST_WORKSPACE, ctypes.c_uint64(0))
    return preference


def _tile_of(form: _Form) -> int:
    """Its cublasLtMatmulTile_t."""
    tile, written = ctypes.c_uint32(), ctypes.c_size_t()
    _call("MatmulAlgoConfigGetAttribute", form.algorithm, _TILE, ctypes.byref(tile), ctypes.c_size_t(4), ctypes.byref(written))
    return tile.value
