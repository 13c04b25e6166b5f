"""GET /scale of a real server, and alert rules that a server judges itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glmserve.engine.fake import FakeOptions
from glmserve.protocol.errors import SettingsError
from tests.server.serving import ServerInThread, chat_body, eventually


def test_the_advice_and_the_metric_are_one() -> None:
    server = ServerInThread(FakeOptions(), server={"api_key": ("secret",)})
    try:
        services = server.services
        now = 1e6  # far from the server's own looks at a clock that has just begun
        for second in (0, 60, 120, 180, 240, 300, 360, 420):
            services.watch.look(now + second)
        advice = server.http.get("/scale").raise_for_status().json()  # without a key, like /metrics
        assert advice["replicas"] == 1 and advice["load"] == 0
        assert set(advice["reasons"]) >= {"batch", "queue", "kv_cache"}
        assert advice["utilization"]["note"]
        assert server.metric("glmserve:desired_replicas") == 0
    finally:
        server.stop()


def test_a_server_judges_its_alert_rules(tmp_path: Path) -> None:
    program = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    command = f'[{sys.executable}, -c, "{program}", {tmp_path / "told"}, "{{text}}"]'
    rules = f"interval: 1s\nactions:\n  note: {{type: command, command: {command}}}\n"
    rules += "rules:\n- {name: any request, signal: requests_per_second, above: 0, over: 1h, for: 0}\n"
    (tmp_path / "rules.yaml").write_text(rules)
    server = ServerInThread(FakeOptions(), server={"alert_rules": tmp_path / "rules.yaml"})
    try:
        server.http.post("/v1/chat/completions", json=chat_body(max_tokens=2)).raise_for_status()
        eventually(lambda: (tmp_path / "told").exists() and "any request" in (tmp_path / "told").read_text())
        assert "requests_per_second is" in (tmp_path / "told").read_text()
    finally:
        server.stop()


def test_rules_that_cannot_be_used_end_the_start(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules:\n- {name: r, signal: mbu}\n")
    with pytest.raises(SettingsError, match=r"line 2: rules\[0\]: a rule takes either"):
        ServerInThread(FakeOptions(), server={"alert_rules": tmp_path / "rules.yaml"})
