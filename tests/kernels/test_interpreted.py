"""Every Triton kernel against its plain twin on Triton's CPU interpreter, so that a machine without a GPU tests them too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "interpreted.py"
CASES = [
    "layer_norm",
    "rms_norm",
    "activations",
    "rotary_store",
    "finish_rotary_store",
    "one_row_linear",
    "few_rows_linear",
    "decode_rows",
    "dequantize",
    "greedy",
    "nucleus",
    "top_k",
    "summed_layer_norm",
    "scaled_layer_norm",
    "scaled_few_rows",
    "scaled_rows",
    "full_heads_decode",
    "full_heads_decode_split",
    "decode_grouped",
    "dense_prefill",
    "prefill",
    "prefill_grouped",
]


@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_its_twin(case: str) -> None:
    # A process of its own: TRITON_INTERPRET is read when the kernels are imported.
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'glmserve[interpreter]'")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    run = subprocess.run([sys.executable, str(SCRIPT), case], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
