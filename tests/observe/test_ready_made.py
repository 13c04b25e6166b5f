"""The Prometheus rules and the Grafana dashboard that ship with the product ask only for what the exporter gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmserve.observe.alert_file import parse_alert_rules
from glmserve.observe.alert_rules import UNREACHABLE
from glmserve.observe.metric_list import all_metrics
from glmserve.observe.signals import SIGNALS
from glmserve.protocol.stats import DeviceSeconds
from glmserve.tools.monitor.run import ready_made

PROMETHEUS_OWN = {"up": {"job", "instance"}}  # what Prometheus adds itself
TARGET_LABELS = {"job", "instance"}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABEL_LIST = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_WORD = re.compile(r"(?<![\w:$.])[a-zA-Z_:][\w:]*")
KEYWORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ready_made("prometheus-rules"))["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return json.loads(ready_made("grafana-dashboard"))  # type: ignore[no-any-return]


def dashboard_expressions() -> list[str]:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    asked = [
        re.sub(r"label_values\((.*), \w+\)", r"\1", one["definition"]) for one in dashboard()["templating"]["list"] if "definition" in one
    ]
    return shown + asked + [note["expr"] for note in dashboard()["annotations"]["list"]]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + dashboard_expressions()


def samples() -> dict[str, set[str]]:
    """Every sample name that the exporter can give, with its labels."""
    known = dict(PROMETHEUS_OWN)
    for metric in all_metrics():
        labels = {*metric.labels, *TARGET_LABELS}
        if metric.type == "histogram":
            known |= {metric.name + "_bucket": labels | {"le"}, metric.name + "_sum": labels, metric.name + "_count": labels}
        else:
            known[metric.name] = labels
    return known


def metric_names(expression: str) -> set[str]:
    """The names of metrics in an expression: its words that are no function, no keyword, no label, no duration."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", _LABEL_LIST.sub("", _STRING.sub('""', expression)))
    return {match[0] for match in _WORD.finditer(bare) if match[0] not in KEYWORDS and not bare[match.end() :].lstrip().startswith("(")}


def test_names_are_found_in_expressions() -> None:
    assert metric_names('sum by (le, x) (rate(a:b_total{c=~"d|e"}[5m])) / ignoring (f) group_left on(g) h > 0.5 and i') == {
        "a:b_total",
        "h",
        "i",
    }


@pytest.mark.parametrize("expression", expressions())
def test_only_exported_names_are_asked_for(expression: str) -> None:
    known = samples()
    names = metric_names(expression)
    assert names and names <= set(known), names - set(known)
    for name, matchers in _SELECTOR.findall(expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", _STRING.sub("", matchers)))
        assert labels <= known[name], (name, labels - known[name])
    for _, listed in _LABEL_LIST.findall(expression):
        labels = {label.strip() for label in listed.split(",") if label.strip()}
        assert all(any(label in known[name] for name in names) for label in labels), labels


@pytest.mark.parametrize("expression", [one for one in expressions() if "activity=" in one])
def test_activities_that_are_named_exist(expression: str) -> None:
    named = {activity for values in re.findall(r'activity=~?"([^"]*)"', expression) for activity in values.split("|")}
    assert named <= set(DeviceSeconds.__struct_fields__)


def test_every_rule_tells_what_to_do() -> None:
    assert len(rules()) > 8
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_the_dashboard_is_whole() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_what_matters_is_in_the_dashboard() -> None:
    """Not every metric needs a panel; these do."""
    asked = {name for expression in dashboard_expressions() for name in metric_names(expression)}
    exported = {name for name in samples() if name.startswith("glmserve:") and not name.endswith(("_bucket", "_sum", "_count"))}
    left_out = {name.removeprefix("glmserve:") for name in exported - asked}
    fine = ("estimated_", "device_", "nvml_pcie", "cache_config", "engine_steps", "num_prompt_tokens_accepted", "iteration_tokens")
    assert {name for name in left_out if not name.startswith(fine)} == set()


def test_signals_read_metrics_that_are_exported() -> None:
    families = {
        metric.name.removeprefix("glmserve:").removesuffix("_total" if metric.type == "counter" else "\0") for metric in all_metrics()
    }
    assert {signal.source for signal in SIGNALS.values()} <= families
    assert UNREACHABLE not in SIGNALS


def test_the_documentation_lists_every_signal() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for signal in SIGNALS.values():
        assert f"| `{signal.name}` | {signal.unit} | {signal.help} |" in page


def test_the_rules_in_the_documentation_are_right() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    parts = {block.split(":")[0]: block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)}
    rules = parse_alert_rules(parts["actions"] + parts["rules"], "docs/monitoring.md")
    assert [action.type for action in rules.actions.values()] == ["webhook", "email", "command"]
