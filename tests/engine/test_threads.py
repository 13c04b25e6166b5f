"""How many CPU threads an engine takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from glmserve.config import EngineConfig
from glmserve.engine import loading
from glmserve.models.catalog import read_spec

FIXTURE = Path(__file__).parents[1] / "fixtures/models/chatglm-tiny"


@pytest.mark.parametrize(
    ("num_threads", "num_layers", "device", "expected"),
    [
        (None, 2, "cpu", [1]),  # a small model's threads would mostly wait for each other
        (3, 2, "cpu", [3]),
        (None, 100_000, "cpu", []),  # torch's own default
        (None, 2, "cuda", []),
    ],
)
def test_a_small_model_on_a_cpu_takes_one(num_threads: int | None, num_layers: int, device: str, expected: list[int]) -> None:
    spec = replace(read_spec(FIXTURE), num_layers=num_layers)
    with mock.patch.object(torch, "set_num_threads") as set_num_threads:
        loading._set_threads(EngineConfig(model=str(FIXTURE), num_threads=num_threads), spec, torch.device(device))
    assert [call.args[0] for call in set_num_threads.call_args_list] == expected
