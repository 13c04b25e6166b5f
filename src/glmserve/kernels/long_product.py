"""The product of thousands of fp8 rows through cuBLASLt, in a form that is fast for seconds and not for a moment.

Prompts keep a GPU at its power limit, where that form of a product is fastest that takes the least energy.  cuBLASLt ranks its forms by
what they do on a cool chip, and torch takes the first; another of the list lasts better (docs/decisions/long-products.md).  torch has no
word for choosing one, but the library that it has loaded does.  Twin: `levels_product` of scaled_rows.py.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

from glmserve.kernels.backend import use_triton
from glmserve.kernels.gluon_backend import is_hopper

_FEWEST_ROWS = 8192
_LASTING_TILE = 24  # CUBLASLT_MATMUL_TILE_256x128: 256 outputs of 128 rows
_MOST_FORMS = 16
_MULTIPLE = 128  # of outputs and width
_ALIGNMENT = 256  # bytes, what cuBLASLt takes for granted
_FLOAT32, _BFLOAT16, _FLOAT8, _COMPUTE_FLOAT32 = 0, 14, 28, 68  # of cudaDataType_t and cublasComputeType_t
_TRANSPOSE_FIRST, _FAST_ACCUMULATION = 3, 25  # of cublasLtMatmulDescAttributes_t
_COLUMNS = 3  # of cublasLtMatrixLayoutAttribute_t
_MOST_WORKSPACE = 1  # of cublasLtMatmulPreferenceAttributes_t
_TILE = 1  # of cublasLtMatmulAlgoConfigAttributes_t


class _Form(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def serves_long_product(levels: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `long_product` serves fp8 levels [rows, width] and an fp8 weight [outputs, width]: thousands of rows, on Hopper."""
    if levels.shape[0] < _FEWEST_ROWS or not use_triton(levels) or not is_hopper(levels.device) or _library() is None:
        return False
    whole = weight.shape[0] % _MULTIPLE == 0 and weight.shape[1] % _MULTIPLE == 0
    return whole and all(tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0 for tensor in (levels, weight))


def long_product(levels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """levels weight^T in bfloat16 [rows, outputs], the sums added up fast.

    levels: float8_e4m3fn [rows, width]; weight: float8_e4m3fn [outputs, width].  Raises RuntimeError where cuBLASLt does not take it.
    Source: cuBLAS manual, "Using the cuBLASLt API".
    """
    out = levels.new_empty((levels.shape[0], weight.shape[0]), dtype=torch.bfloat16)
    _product(levels.device, *weight.shape).run(levels, weight, out)
    return out


class _Product:
    """What cuBLASLt knows of a product but its number of rows.

    It stores by columns, so to it the result's transpose is the weight, transposed, times the rows' transpose.
    """

    def __init__(self, device: torch.device, outputs: int, width: int) -> None:
        self._handle = _handle(device)
        self._description = _new("MatmulDesc", _COMPUTE_FLOAT32, _FLOAT32)
        _set("MatmulDesc", self._description, _TRANSPOSE_FIRST, ctypes.c_int32(1))
        _set("MatmulDesc", self._description, _FAST_ACCUMULATION, ctypes.c_int8(1))
        self._weight, self._rows = _layout(_FLOAT8, width, outputs), _layout(_FLOAT8, width, _FEWEST_ROWS)
        self._out = _layout(_BFLOAT16, outputs, _FEWEST_ROWS)
        self._form = functools.lru_cache(maxsize=256)(self._find_form)

    def run(self, levels: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """Launch it in the current stream."""
        for layout in (self._rows, self._out):
            _set("MatrixLayout", layout, _COLUMNS, ctypes.c_uint64(levels.shape[0]))
        algorithm, to = self._form(levels.shape[0]).algorithm, ctypes.c_void_p(out.data_ptr())
        stream = ctypes.c_void_p(torch.cuda.current_stream(levels.device).cuda_stream)
        _call(
            "Matmul", self._handle, self._description, ctypes.byref(ctypes.c_float(1)), ctypes.c_void_p(weight.data_ptr()), self._weight,
            ctypes.c_void_p(levels.data_ptr()), self._rows, ctypes.byref(ctypes.c_float(0)), to, self._out, to, self._out,
            algorithm, None, ctypes.c_size_t(0), stream,
        )  # fmt: skip

    def _find_form(self, rows: int) -> _Form:
        """The one with the lasting tile, else cuBLASLt's first, of those that need no workspace.  `rows`: what the layouts say."""
        forms, count = (_Form * _MOST_FORMS)(), ctypes.c_int()
        layouts = (self._weight, self._rows, self._out, self._out)
        _call(
            "MatmulAlgoGetHeuristic", self._handle, self._description, *layouts, _no_workspace(), _MOST_FORMS, forms, ctypes.byref(count)
        )  # fmt: skip
        if not count.value:
            raise RuntimeError(f"cuBLASLt has no form of a product of {rows} rows.")
        return next((form for form in forms[: count.value] if _tile_of(form) == _LASTING_TILE), forms[0])


@functools.cache
def _product(device: torch.device, outputs: int, width: int) -> _Product:
    return _Product(device, outputs, width)


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


def _layout(dtype: int, rows: int, columns: int) -> ctypes.c_void_p:
    """Of a dense matrix stored by columns."""
    return _new("MatrixLayout", dtype, ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))


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
