"""`glmserve slow` as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

Run = Callable[..., subprocess.CompletedProcess[str]]

LINE = {
    "event": "request", "timestamp": "2026-11-22T21:27:00.738Z", "request_id": "chat-1", "status": 200, "prompt_tokens": 1200,
    "completion_tokens": 35, "e2e_seconds": 4.5, "first_token_seconds": 3.4, "queue_seconds": 3.1, "decode_seconds": 1.1,
    "wait_cause": "kv_full", "num_ahead": 14,
}  # fmt: skip


def test_a_table_for_people(glmserve: Run) -> None:
    result = glmserve("slow", "-", stdin=json.dumps(LINE) + "\n", COLUMNS="200")
    assert result.returncode == 0, result.stderr
    [heading, row] = result.stdout.splitlines()
    assert "why" in heading and "took" in heading
    assert "11-22 21:27:00" in row and "4.50 s" in row and "1,200+35" in row and "chat-1" in row
    assert "waited 3.1 s for K/V blocks: 14 requests before it held all of them" in row


def test_json_for_programs(glmserve: Run) -> None:
    result = glmserve("slow", "-", "--json", stdin=json.dumps(LINE) + "\n")
    [request] = json.loads(result.stdout)["requests"]
    assert (request["request_id"], request["cause"]) == ("chat-1", "kv_full")


def test_nothing_slow_and_nothing_there(glmserve: Run) -> None:
    assert "No request took 10 s" in glmserve("slow", "-", "--over", "10s", stdin=json.dumps(LINE) + "\n").stdout
    refused = {"event": "refused", "status": 400, "code": None, "error": "no"}
    assert "No request has ended so far." in glmserve("slow", "-", "--over", "0", stdin=json.dumps(refused) + "\n").stdout
    result = glmserve("slow", "/nowhere/log")
    assert result.returncode == 2 and "/nowhere/log cannot be read" in result.stderr and "Traceback" not in result.stderr
    result = glmserve("slow", "http://127.0.0.1:1")
    assert result.returncode == 1 and "does not answer" in result.stderr
