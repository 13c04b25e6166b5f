"""docs/metrics.md, made from what it describes: `python -m glmserve.observe.metric_docs > docs/metrics.md`.

That is the list of metrics, and the alert rules and the dashboard that ship in `ready_made`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

import msgspec
import yaml

from glmserve.observe.metric_list import all_metrics
from glmserve.protocol.stats import DeviceSeconds

HEAD = """\
# Metrics, alert rules, panels

`GET /metrics` gives these in Prometheus' text format. Suffixes and labels are vLLM's where vLLM has the metric, so that its dashboards
need a new prefix and nothing else. A histogram has `_bucket`, `_sum` and `_count` behind its name. Series that end in
`_created` say since when their metric counts. The `nvml_*` metrics are there where the engine runs on an NVIDIA GPU.

This page is made by `python -m glmserve.observe.metric_docs > docs/metrics.md`, and a test holds it to the code.

## Where the device's time goes

`glmserve:gpu_time_seconds_total{activity}` counts the wall time of the device since the engine started. The parts sum to all of it, so
`rate(...[1m])` of a part is its share. On a GPU, work is measured by device events around each step, not by the host's clock.

| activity | the device |
|---|---|
"""

ACTIVITIES = {
    "prefill": "computes prompts",
    "decode": "computes the next token of every running request",
    "sampling": "chooses those tokens from the scores and hands them to the host",
    "idle_no_work": "waits: nobody has asked for anything",
    "idle_scheduling": "waits for the host, which plans or launches a step, or reads and sends the results of the last one",
    "idle_tokenizing": "waits while the only requests there are being turned into tokens",
    "idle_http": "waits while the only requests there are read, checked or handed over in the HTTP process",
    "idle_kv_full": "waits: requests are there, but no K/V block is free for any of them",
    "idle_draining": "waits: the server is shutting down",
}

UTILIZATION = """
A step counts as work from its first kernel to its last: gaps inside a step, as between kernels that are launched one by one, are not
idle time. `glmserve:launch_bound_seconds_total` counts the work in steps that the host took as long to launch as a GPU to run, and
MBU and MFU show what the gaps cost. They set what the model's mathematics needs (each matrix read once a step, each request's K/V
read once, new K/V written) beside what this device was measured to do when the engine started, over the last ten seconds, idle time
included. `nvml_utilization_perc` only says that some kernel ran. A model so small that its weights stay in the processor's cache can
show an MBU above 1.

## All metrics

| name | type | labels | meaning |
|---|---|---|---|
"""


ALERTS = """
## Alert rules

The server's own, as `glmserve monitor --show alert-rules` prints them; [monitoring.md](monitoring.md) says how they are judged and told.

| rule | bad when | for | severity | what to do |
|---|---|---|---|---|
"""

PROMETHEUS_ALERTS = """
Prometheus' (`glmserve monitor --show prometheus-rules`):

| rule | asks for | for | severity | meaning |
|---|---|---|---|---|
"""

PANELS = """
## Panels of the Grafana dashboard

`glmserve monitor --show grafana-dashboard` prints it.

| panel | asks for | shows |
|---|---|---|
"""

_NAME = re.compile(r"\b(?:glmserve:\w+|http_requests_total|up)\b")


def metrics_page() -> str:
    """The whole page."""
    activities = (row(f"`{name}`", ACTIVITIES[name]) for name in msgspec.structs.asdict(DeviceSeconds()))
    metrics = (
        row(f"`{metric.name}`", metric.type, ", ".join(metric.labels), metric.help)
        for metric in sorted(all_metrics(), key=lambda metric: metric.name)
    )
    return "".join(
        (HEAD, *activities, UTILIZATION, *metrics, ALERTS, *_own_rules(), PROMETHEUS_ALERTS, *_prometheus_rules(), PANELS, *_panels())
    )


def row(*cells: str) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _own_rules() -> Iterator[str]:
    for rule in yaml.safe_load(_ready_made("alert-rules.yaml"))["rules"]:
        limit = f"`{rule['signal']}` " + " ".join(f"{word} {rule[word]}" for word in ("above", "below", "over") if word in rule)
        yield row(rule["name"], limit, str(rule.get("for", "1m")), rule.get("severity", "warning"), rule["message"])


def _prometheus_rules() -> Iterator[str]:
    for group in yaml.safe_load(_ready_made("prometheus-rules.yml"))["groups"]:
        for rule in group["rules"]:
            notes = rule["annotations"]
            words = re.sub(r"\{\{.*?\}\}", "...", notes["summary"]) + ". " + notes["description"]
            yield row(rule["alert"], _asked([rule["expr"]]), str(rule.get("for", "0")), rule["labels"]["severity"], words)


def _panels() -> Iterator[str]:
    for panel in json.loads(_ready_made("grafana-dashboard.json"))["panels"]:
        if panel.get("targets"):
            yield row(panel["title"], _asked(target["expr"] for target in panel["targets"]), panel["description"])


def _asked(expressions: Iterable[str]) -> str:
    """The metrics that PromQL expressions name, without prefix and endings."""
    names = dict.fromkeys(name for expression in expressions for name in _NAME.findall(expression))
    return ", ".join(f"`{name.removeprefix('glmserve:')}`" for name in names)


def _ready_made(name: str) -> Any:
    return files("glmserve.observe").joinpath("ready_made", name).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
