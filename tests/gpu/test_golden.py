"""The whole CUDA path on the recorded models of the original: float32 exactly, half precision within its rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.golden import (
    HALF_PRECISION_BAR,
    PTUNING_MODELS,
    QUANTIZED_MODELS,
    SMALL_MODELS,
    LogitRecorder,
    first_step_errors,
    generate,
    make_engine,
    read_cases,
    recorded_logits,
)

# The recorded models attend far more sharply than trained ones, so that rounding their weights alone moves the logits by more than the bar
# (tests/engine/test_half_precision.py).  The kernels may add this much to what the plain torch path on the CPU makes of the same weights.
ABOVE_PLAIN_PATH = 1.3


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("model", [*SMALL_MODELS, *QUANTIZED_MODELS, *PTUNING_MODELS])
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
@pytest.mark.parametrize("model", [*SMALL_MODELS, *QUANTIZED_MODELS, *PTUNING_MODELS])
def test_half_precision_is_as_close_as_its_rounding_allows(shared: Path, model: str, dtype: str) -> None:
    folder = shared / "golden/v1" / model
    cases = [case for case in read_cases(folder) if not case.is_long]
    on_gpu, plain = (
        first_step_errors(make_engine(folder, device=device, dtype=dtype, num_kv_blocks=2000), cases) for device in ("cuda", "cpu")
    )
    print(f"{model} {dtype}, median and max: GPU {np.median(on_gpu):.1e} {max(on_gpu):.1e}, plain {np.median(plain):.1e} {max(plain):.1e}")
    # Rounding falls differently on the two paths, so one case may differ more than many do.
    allowed = ABOVE_PLAIN_PATH if len(cases) > 5 else 2.0
    assert max(on_gpu) <= max(HALF_PRECISION_BAR[dtype], allowed * max(plain))
    assert np.median(on_gpu) <= max(HALF_PRECISION_BAR[dtype], allowed * np.median(plain))
