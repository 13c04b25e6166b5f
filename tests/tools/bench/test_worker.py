"""A client process on its own."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from glmserve.tools.bench.plan import Plan, PlannedRequest, ServerFacts

PLAN = Plan(
    base_url="http://127.0.0.1:1", path="/chat", backend="chatglm", headers={}, facts=ServerFacts("m"), token_ids=None, seed=0,
    temperature=0.0, ignore_eos=False, timeout=1.0, max_concurrency=1, requests=[PlannedRequest(0, 0.0, 1, 1)], num_warmups=1,
)  # fmt: skip


def test_a_worker_whose_parent_is_gone_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "glmserve.tools.bench.worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert worker.stdin is not None and worker.stdout is not None and worker.stderr is not None
    worker.stdout.close()
    worker.stdin.write(msgspec.json.encode(PLAN) + b"\n")
    worker.stdin.close()
    assert worker.stderr.read() == b""
    worker.stderr.close()
    assert worker.wait(30) == 0
