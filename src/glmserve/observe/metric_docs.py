"""docs/metrics.md, made from the declarations: `python -m glmserve.observe.metric_docs > docs/metrics.md`."""

from __future__ import annotations

import sys

import msgspec

from glmserve.observe.metric_list import all_metrics
from glmserve.protocol.stats import DeviceSeconds

HEAD = """\
# Metrics

`GET /metrics` gives these in Prometheus' text format. Suffixes and labels are vLLM's where vLLM has the metric, so that its dashboards
need a new prefix and nothing else. A histogram has `_bucket`, `_sum` and `_count` behind its name. The `nvml_*` metrics are there where
the engine runs on an NVIDIA GPU.

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
idle time. MBU and MFU show them. They set what the model's mathematics needs (each matrix read once a step, each request's K/V read
once, new K/V written) beside what this device was measured to do when the engine started, over the last ten seconds, idle time
included. `nvml_utilization_perc` only says that some kernel ran. A model so small that its weights stay in the processor's cache can
show an MBU above 1.

## All metrics

| name | type | labels | meaning |
|---|---|---|---|
"""


def metrics_page() -> str:
    """The whole page."""
    activities = [f"| `{name}` | {ACTIVITIES[name]} |\n" for name in msgspec.structs.asdict(DeviceSeconds())]
    rows = [
        f"| `{metric.name}` | {metric.type} | {', '.join(metric.labels)} | {metric.help} |\n"
        for metric in sorted(all_metrics(), key=lambda metric: metric.name)
    ]
    return "".join((HEAD, *activities, UTILIZATION, *rows))


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
