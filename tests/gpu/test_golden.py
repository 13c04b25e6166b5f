"""The whole CUDA path on the recorded models of the original: float32 exactly, half precision within its rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.engine.golden import SMALL_MODELS, LogitRecorder, generate, make_engine, read_cases, recorded_logits

RELATIVE_ERROR = {"float16": 2e-3, "bfloat16": 1e-2}


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("model", SMALL_MODELS)
def test_float32_is_the_original(shared: Path, model: str, eager: bool) -> None:
    folder = shared / "golden/v1" / model
    cases = read_cases(folder)
    engine = make_engine(folder, device="cuda", dtype="float32", enforce_eager=eager, num_kv_blocks=2000)
    recorder = LogitRecorder(engine)
    alone = {case.name: generate(engine, [case])[case.name] for case in cases}
    for case in cases:
        assert alone[case.name] == case.greedy_tokens, case.name
        ids, expected = recorded_logits(case)
        logits = np.stack(recorder.logits[case.name][: len(expected)])
        error = np.abs(np.take_along_axis(logits, ids, 1) - expected).max()
        assert error <= (2e-3 if case.is_long else 3e-4), (case.name, error)
    assert generate(engine, cases) == alone


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", SMALL_MODELS)
def test_half_precision_is_close(shared: Path, model: str, dtype: str) -> None:
    folder = shared / "golden/v1" / model
    engine = make_engine(folder, device="cuda", dtype=dtype, num_kv_blocks=2000)
    recorder = LogitRecorder(engine)
    cases = [case for case in read_cases(folder) if not case.is_long]
    for case in cases:
        generate(engine, [case])
    errors = {}
    for case in cases:
        ids, expected = recorded_logits(case)
        first = np.take_along_axis(recorder.logits[case.name][0][None], ids[:1], 1)
        errors[case.name] = float(np.linalg.norm(first - expected[:1]) / np.linalg.norm(expected[:1]))
    print(model, dtype, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= RELATIVE_ERROR[dtype], errors
