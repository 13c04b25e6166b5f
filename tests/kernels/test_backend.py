"""`--kernels plain`: which path a tensor on a GPU takes.  No GPU is needed to ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from glmserve.config import EngineConfig
from glmserve.engine.loading import load_engine
from glmserve.kernels import activation, backend, norm, rotary_store
from glmserve.kernels.one_row_linear import is_one_row

OPS: list[tuple[ModuleType, str, int]] = [
    (norm, "residual_layer_norm", 6),
    (norm, "residual_rms_norm", 4),
    (activation, "gelu_tanh", 1),
    (activation, "silu_and_mul", 1),
    (rotary_store, "rotate_and_store", 7),
]
ON_GPU: Any = SimpleNamespace(is_cuda=True)
FIXTURE = Path(__file__).parents[1] / "fixtures/models/chatglm-tiny"


@pytest.fixture(autouse=True)
def fused_again() -> Iterator[None]:
    yield
    backend.choose_kernels(plain=False)


@pytest.mark.parametrize(("module", "op", "num_arguments"), OPS)
@pytest.mark.parametrize("plain", [False, True])
def test_each_op_with_a_twin_takes_it(module: ModuleType, op: str, num_arguments: int, plain: bool) -> None:
    backend.choose_kernels(plain)
    with mock.patch.object(module, f"{op}_torch") as twin, mock.patch.object(module, f"{op}_triton") as kernel:
        getattr(module, op)(*[ON_GPU] * num_arguments)
    assert (twin.called, kernel.called) == (plain, not plain)


def test_a_product_of_one_row_is_torchs_own() -> None:
    x: Any = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=(1, 64))
    assert is_one_row(x, x)
    backend.choose_kernels(plain=True)
    assert not is_one_row(x, x)
    assert backend.on_gpu(x), "attention over the paged cache stays a kernel"


def test_the_setting_reaches_the_kernels() -> None:
    for kernels, fused in (("plain", False), ("fused", True)):
        load_engine(EngineConfig(model=str(FIXTURE), device="cpu", num_kv_blocks=32, kernels=kernels), lambda _: None)  # type: ignore[arg-type]
        assert backend.use_triton(ON_GPU) is fused
