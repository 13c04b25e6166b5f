"""The offline workloads on this machine's GPU, with random weights of ChatGLM-6B's real shape.

    python benchmarks/offline.py [--dtype bfloat16] [--only bs32,prefill] [--output-json FILE]

All prompts are handed in at once, greedy, the end token ignored.  Prints one line a workload: tokens a second and their share of the
floor, which is the larger of bytes and arithmetic that the workload cannot avoid (src/glmserve/models/floor.py), over the copy and
matrix-product rates measured in the same run.  It is `glmserve bench throughput` with these defaults; all of its flags may be added.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULTS = [
    "--model", str(HERE / "chatglm-6b"), "--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "bfloat16",
    "--device", "cuda", "--workloads", str(HERE / "workloads.json"),
]  # fmt: skip


def main() -> None:
    """Becomes the command; a flag given twice counts as it was given last."""
    arguments = ["--output-json" if argument == "--json" else argument for argument in sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-m", "glmserve", "bench", "throughput", *DEFAULTS, *arguments])


if __name__ == "__main__":
    main()
