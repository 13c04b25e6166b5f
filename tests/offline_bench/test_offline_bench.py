"""The engine's own bench, run as a user does, on a model of random weights and two layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glmserve.models.chatglm.spec import spec_from_config
from glmserve.models.floor import Workload
from glmserve.offline_bench.run import idle_share, random_prompt, read_workloads
from glmserve.protocol.errors import SettingsError
from glmserve.protocol.stats import DeviceSeconds

CONFIG = Path(__file__).parents[1] / "fixtures" / "tokenizer" / "config.json"


def run(what: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glmserve", "bench", what, "--model", str(CONFIG.parent), "--load-format", "dummy"]
    small = ["--skip-tokenizer-init", "--device", "cpu", "--dtype", "float32", "--num-kv-blocks", "64"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GLMSERVE_")}
    return subprocess.run([*command, *small, *flags], capture_output=True, text=True, timeout=120, env=environ)


def test_throughput_of_a_workloads_file_beside_its_floor(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text('{"offline": [{"name": "a", "num_prompts": 3, "input_len": 8, "output_len": 4, "repeats": 2}]}')
    done = run("throughput", "--workloads", str(tmp_path / "w.json"), "--output-json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert "| a (3 x 8+4) |" in done.stdout
    row = json.loads((tmp_path / "out.json").read_text())["rows"][0]
    assert len(row["seconds"]) == 2
    assert row["out_tok_s"] == pytest.approx(12 / min(row["seconds"]))
    assert 0 < row["floor_share"] < 1
    assert 0 < row["idle"] < 1, "a CPU computes nothing while it plans the next step"


def test_idle_is_time_without_a_step_while_there_was_work() -> None:
    before = DeviceSeconds(prefill=1, decode=1, idle_no_work=5, idle_scheduling=1)
    after = DeviceSeconds(prefill=2, decode=8, sampling=1, idle_no_work=50, idle_scheduling=1.5, idle_kv_full=0.5)
    assert idle_share(before, after) == pytest.approx(1 / 10)
    assert idle_share(before, before) == 0


def test_latency(tmp_path: Path) -> None:
    done = run(
        "latency", "--batch-size", "2", "--input-len", "8", "--output-len", "4", "--num-iters", "3", "--output-json", str(tmp_path / "o")
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "o").read_text())
    assert len(result["latencies"]) == 3
    assert result["percentiles"]["50"] == pytest.approx(result["latencies"][1])


def test_what_cannot_run_says_so() -> None:
    done = run("throughput", "--input-len", "600")
    assert done.returncode == 1
    assert "512" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("throughput", "--input-len", "1").returncode == 2


def test_workloads_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    entries = [{"name": name, "num_prompts": 1, "input_len": 2, "output_len": 3} for name in "ab"]
    path.write_text(json.dumps({"offline": entries}))
    assert read_workloads(path, "b") == [Workload("b", 1, 2, 3)]
    with pytest.raises(SettingsError, match="no workload c; it has a, b"):
        read_workloads(path, "c")
    path.write_text("{}")
    with pytest.raises(SettingsError, match="is no workloads file"):
        read_workloads(path, None)


def test_a_prompt_for_chatglm_ends_its_context() -> None:
    spec = spec_from_config(json.loads(CONFIG.read_text()))
    prompt = random_prompt(spec, "1", 50)
    assert len(prompt) == 50
    assert prompt[-2:] == [spec.gmask_token_id, spec.bos_token_id]
    special = {spec.gmask_token_id, spec.bos_token_id, spec.mask_token_id, *spec.eos_token_ids}
    assert not special & set(prompt[:-2])
