"""`bench serve` against a real server with the fake engine behind it: it counts what the server counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmserve.engine.fake import FakeOptions
from glmserve.protocol.errors import EngineUnavailableError, SettingsError
from glmserve.tools.bench.serve import NoAnswerError, bench_serve
from glmserve.tools.bench.settings import ServeBenchConfig, load_serve_bench_settings
from tests.server.serving import MODEL, ServerInThread, eventually

SMALL = {
    "num_prompts": 24,
    "random_input_len": 16,
    "random_output_len": 12,
    "ignore_eos": True,
    "token_ids": "10:700",
    "disable_tqdm": True,
}
WORDS = tuple(range(300, 340))  # what the fake engine says: plain pieces of text


@pytest.fixture(scope="module")
def server() -> Iterator[ServerInThread]:
    """Has room for three requests."""
    server = ServerInThread(FakeOptions(alphabet=WORDS, step_seconds=0.002), server={"max_num_queued_reqs": 3, "api_key": ("k",)})
    server.http.headers["Authorization"] = "Bearer k"
    yield server
    server.stop()


def bench(server: ServerInThread, **settings: Any) -> dict[str, Any]:
    return bench_serve(ServeBenchConfig(**{"base_url": server.url, "api_key": "k", **SMALL, **settings}))


def test_a_closed_loop_never_has_more_requests_than_asked_for(server: ServerInThread) -> None:
    figures = bench(server, max_concurrency=3, num_workers=2)  # a fourth one would get 503
    assert (figures["completed"], figures["failed"]) == (24, 0)
    assert figures["max_concurrent_requests"] <= 3


def test_counts_are_the_servers(server: ServerInThread) -> None:
    names = ("glmserve:prompt_tokens_total", "glmserve:generation_tokens_total")
    before = [server.metric(name) for name in names]
    figures = bench(server, max_concurrency=3, random_range_ratio=0.5, num_warmups=0)
    assert [server.metric(name) - count for name, count in zip(names, before, strict=True)] == [
        figures["total_input_tokens"],
        figures["total_output_tokens"],
    ]
    assert figures["output_throughput"] == pytest.approx(figures["total_output_tokens"] / figures["duration"])


def test_prompts_have_exactly_their_length_and_end_as_the_model_wants(server: ServerInThread) -> None:
    figures = bench(server, max_concurrency=3)
    assert figures["total_input_tokens"] == 24 * 16
    assert figures["total_output_tokens"] == 24 * 12


def test_refusals_are_counted_by_kind(server: ServerInThread) -> None:
    figures = bench(server, num_prompts=40)  # all at once
    assert figures["errors_by_kind"] == {"HTTP 503": figures["failed"]}
    assert figures["completed"] + figures["failed"] == 40
    assert figures["failed"] > 0


def test_chat(server: ServerInThread) -> None:
    figures = bench(server, backend="openai-chat", max_concurrency=2, num_prompts=4)
    assert figures["total_output_tokens"] == 4 * 12
    assert figures["median_ttft_ms"] > 0


def test_chatglms_own_protocol(server: ServerInThread) -> None:
    figures = bench(server, backend="chatglm", max_concurrency=2, num_prompts=4, random_output_len=20)
    assert figures["completed"] == 4
    assert figures["median_e2el_ms"] > 0
    assert (figures["median_ttft_ms"], figures["total_output_tokens"]) == (None, None)


def test_the_result_file_has_vllms_names_and_no_key(server: ServerInThread, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    bench(server, max_concurrency=2, num_prompts=5, request_rate=1000, save_result=path, save_detailed=True)
    result = json.loads(path.read_text())
    assert result["model_id"] == MODEL
    assert {"request_throughput", "output_throughput", "mean_ttft_ms", "p99_tpot_ms", "p90_itl_ms", "p50_e2el_ms"} <= set(result)
    assert len(result["requests"]) == 5
    assert result["server"]["output_tokens"] == result["total_output_tokens"]
    assert "api_key" not in result


def test_a_run_ends_when_its_time_is_over_and_counts_what_is_done(server: ServerInThread) -> None:
    """An answer takes 0.4 s or more, so the three clients are in the middle of one."""
    figures = bench(server, max_concurrency=3, num_prompts=1000, random_output_len=200, duration=1.0)
    assert figures["duration"] == 1.0 and figures["unfinished"] == 3
    assert figures["completed"] + figures["failed"] < 100 and figures["errors_by_kind"] == {}
    eventually(server.idle)


def test_a_run_that_is_done_before_its_time(server: ServerInThread) -> None:
    figures = bench(server, max_concurrency=3, num_prompts=3, duration=60.0)
    assert (figures["completed"], figures["unfinished"]) == (3, 0)
    assert figures["duration"] < 60


def test_prompts_are_of_ids_that_the_model_has(server: ServerInThread) -> None:
    """The fixture's vocabulary ends far below 30,000."""
    assert bench(server, max_concurrency=3, num_prompts=5, token_ids=None)["completed"] == 5


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(EngineUnavailableError, match="no server answers at"):
        bench_serve(ServeBenchConfig(base_url="http://127.0.0.1:9"))


def test_a_missing_key(server: ServerInThread) -> None:
    with pytest.raises(SettingsError, match="--api-key"):
        bench(server, api_key=None)


def test_a_first_request_that_fails_says_why(server: ServerInThread) -> None:
    with pytest.raises(EngineUnavailableError, match=r"HTTP 404.*no-such-model"):
        bench(server, model="no-such-model")


def test_a_run_without_success_is_a_failure(server: ServerInThread) -> None:
    with pytest.raises(NoAnswerError):
        bench(server, model="no-such-model", num_warmups=0)


def test_the_command(server: ServerInThread) -> None:
    command = [sys.executable, "-m", "glmserve", "bench", "serve", "--base-url", server.url, "--api-key", "k", "--max-concurrency", "2"]
    sizes = ["--num-prompts", "4", "--random-input-len", "16", "--random-output-len", "8", "--token-ids", "10:700", "--ignore-eos"]
    done = subprocess.run([*command, *sizes, "--goodput", "ttft:9000", "tpot:9000"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "output tokens/s" in done.stdout
    assert "TTFT" in done.stdout
    assert "tpot <= 9000 ms" in done.stdout


def test_the_servers_own_variables_are_not_the_clients() -> None:
    config = load_serve_bench_settings({}, {"GLMSERVE_MODEL": "/models/x", "GLMSERVE_SEED": "5", "GLMSERVE_API_KEY": "a,b"})
    assert (config.model, config.seed, config.api_key) == (None, 0, "a")
