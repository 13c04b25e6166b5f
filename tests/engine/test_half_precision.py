"""How far half precision alone takes the recorded models from the float32 original: their weights rounded, all else in float32.

On `small` and `wide` that is more than the bar of 1e-2 (bfloat16) and 2e-3 (float16), so no computation in half precision can keep it
there; what the kernels add is held to the plain path instead (tests/gpu/test_golden.py).  Run with -s to see the figures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from glmserve.engine import loading
from tests.engine.golden import HALF_PRECISION_BAR, first_step_errors, make_engine, read_cases


@pytest.mark.parametrize("dtype", list(HALF_PRECISION_BAR))
@pytest.mark.parametrize("model, above", [("small", True), ("wide", True), ("realvocab", False)])
def test_rounding_the_weights_alone(shared: Path, monkeypatch: pytest.MonkeyPatch, model: str, above: bool, dtype: str) -> None:
    folder = shared / "golden/v1" / model
    cases = [case for case in read_cases(folder) if not case.is_long]
    monkeypatch.setattr(loading, "pack_for_cpu", lambda model: None)  # the weights stay where they can be rounded
    engine = make_engine(folder, device="cpu", dtype="float32", num_kv_blocks=2000)
    with torch.inference_mode():
        for parameter in engine.runner.model.parameters():  # type: ignore[attr-defined]
            parameter.copy_(parameter.to(getattr(torch, dtype)))
    errors = first_step_errors(engine, cases)
    print(f"{model} {dtype}: weights rounded, computed in float32: median {np.median(errors):.1e}, max {max(errors):.1e}")
    assert (np.median(errors) > HALF_PRECISION_BAR[dtype]) == above
