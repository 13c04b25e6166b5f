"""`glmserve monitor` as a command: settings, one line, checks of rules, ready-made files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glmserve.observe.alert_file import parse_alert_rules
from glmserve.protocol.errors import EngineUnavailableError, SettingsError
from glmserve.tools.monitor.run import READY_MADE, monitor, ready_made
from glmserve.tools.monitor.settings import MonitorConfig, load_monitor_settings, server_urls
from tests.tools.monitor.scripted_metrics import MetricsServer


def test_addresses() -> None:
    assert server_urls([]) == ["http://localhost:8000"]
    assert server_urls(["box:9", "https://a/", "http://b:1/metrics", "box:9"]) == ["http://box:9", "https://a", "http://b:1"]


@pytest.mark.parametrize("url", ["ftp://a", "http://", "a:port", "http://a:99999", "::", "my box"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(SettingsError, match="write http://HOST:PORT"):
        server_urls([url])


def test_settings() -> None:
    config = load_monitor_settings({"interval": "30", "log": "-"}, {"GLMSERVE_API_KEY": "a,b", "GLMSERVE_PORT": "1"})
    assert (config.interval, config.log, config.api_key) == (30.0, "-", "a")
    with pytest.raises(SettingsError, match="--once and --log do not go together"):
        load_monitor_settings({"once": True, "log": "-"}, {})


def test_once(server: MetricsServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.values = {"num_requests_running": 1}
    monitor([server.url], MonitorConfig(once=True, interval=0.2, api_key="secret"))
    assert " | GPU: - | Mem: - | QPS: - | busy: - | MBU: - | idle: -" in capsys.readouterr().out
    assert server.keys == {"Bearer secret"}


def test_once_says_which_server_is_away(server: MetricsServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.values = {"num_requests_running": 1}
    with pytest.raises(EngineUnavailableError, match=r"no metrics from http://127\.0\.0\.1:9"):
        monitor([server.url, "127.0.0.1:9"], MonitorConfig(once=True, interval=0.2))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "GPU: -" in lines[0] and "unreachable" in lines[1]


def test_rules_are_judged_while_lines_are_written(server: MetricsServer, tmp_path: Path) -> None:
    server.values = {"num_requests_waiting": 30}
    program = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + chr(10))"
    command = f'[{sys.executable}, -c, "{program}", {tmp_path / "told"}, "{{rule}} {{status}} {{server}}"]'
    rules = f"actions:\n  note: {{type: command, command: {command}}}\nrules:\n"
    rules += (
        "- {name: queue, signal: requests_waiting, above: 20, over: 0, for: 0}\n- {name: away, signal: unreachable, above: 0, for: 0}\n"
    )
    (tmp_path / "rules.yaml").write_text(rules)
    with pytest.raises(EngineUnavailableError):
        monitor([server.url, "127.0.0.1:9"], MonitorConfig(once=True, interval=0.2, alert_rules=tmp_path / "rules.yaml"))
    told = (tmp_path / "told").read_text().splitlines()
    assert told == [f"queue firing {server.url}", "away firing http://127.0.0.1:9"]


def test_check_rules(server: MetricsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    server.values = {"num_requests_waiting": 7}
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n- {name: queue, signal: requests_waiting, above: 20}\n- {name: memory, signal: mbu, below: 10%, for: 5m}\n")
    monitor([server.url], MonitorConfig(check_rules=rules))
    text = " ".join(capsys.readouterr().out.split())
    assert "queue │ requests_waiting above 20 │ 60 s │ warning │ log │ 7" in text
    assert "memory │ mbu below 10% │ 5 min │ warning │ log │ not reported" in text
    rules.write_text("rules:\n- {name: queue, signal: requests_waiting, abov: 20}\n")
    with pytest.raises(SettingsError, match=r"rules\.yaml, line 2: rules\[0\]\.abov: no such key; did you mean above"):
        monitor([], MonitorConfig(check_rules=rules))


@pytest.mark.parametrize("name", READY_MADE)
def test_ready_made_files_are_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    monitor([], load_monitor_settings({"show": name}, {}))
    assert capsys.readouterr().out == ready_made(name)  # type: ignore[arg-type]


def test_the_ready_made_alert_rules_are_right() -> None:
    rules = parse_alert_rules(ready_made("alert-rules"), "alert-rules.yaml")
    assert len({rule.signal for rule in rules.rules}) > 5


def test_the_page_needs_a_terminal() -> None:
    command = [sys.executable, "-c", "from glmserve.cli.main import main; main()", "monitor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--once or --log -" in done.stderr
