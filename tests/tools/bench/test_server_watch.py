"""What is read from a server's /metrics while it is under load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from glmserve.engine.fake import FakeOptions
from glmserve.observe.readings import Readings
from glmserve.tools.bench.server_watch import ServerWatch, figures_of, rows
from tests.server.serving import MODEL, ServerInThread

PAGE = """
glmserve:gpu_time_seconds_total{{activity="prefill",engine="0"}} {prefill}
glmserve:gpu_time_seconds_total{{activity="decode",engine="0"}} {decode}
glmserve:gpu_time_seconds_total{{activity="sampling",engine="0"}} {sampling}
glmserve:gpu_time_seconds_total{{activity="idle_scheduling",engine="0"}} {idle}
glmserve:estimated_read_bytes_per_gpu_total{{engine="0"}} {read}
glmserve:estimated_write_bytes_per_gpu_total{{engine="0"}} 0
glmserve:estimated_flops_per_gpu_total{{engine="0"}} {flops}
glmserve:device_peak_bytes_per_second{{engine="0"}} 100
glmserve:device_peak_flops_per_second{{engine="0"}} 1000
glmserve:generation_tokens_total{{engine="0"}} {tokens}
glmserve:launch_bound_seconds_total{{engine="0"}} {launch_bound}
"""


def reading(at: float, nvml: float | None = None, **values: float) -> Readings:
    nothing = dict.fromkeys(("prefill", "decode", "sampling", "idle", "read", "flops", "tokens", "launch_bound"), 0.0)
    page = PAGE.format(**{**nothing, **values})
    if nvml is not None:
        page += f'glmserve:nvml_utilization_perc{{gpu="0"}} {nvml}\n'
    return Readings.parse(page, at)


def test_shares_are_of_the_devices_own_time() -> None:
    before = reading(100.0, nvml=0.0, prefill=5, read=700, flops=100, tokens=7)
    between = reading(101.0, nvml=0.9)
    after = reading(110.0, nvml=1.0, prefill=6, decode=4, sampling=1, idle=4, read=1100, flops=2100, tokens=57)
    figures = figures_of([before, between, after])
    assert figures.busy == pytest.approx(0.6) and figures.spent["idle_scheduling"] == pytest.approx(0.4)
    assert figures.mbu == pytest.approx(400 / 100 / 10) and figures.mfu == pytest.approx(2000 / 1000 / 10)
    assert figures.floor_seconds == pytest.approx(4.0)
    assert figures.nvml == pytest.approx(0.95), "the first page is from before the load"
    assert figures.output_tokens == 50
    shown = rows(figures)
    assert shown["device busy"] == "60%" and shown["idle because of"] == "scheduling 40%"
    assert shown["floor of this load"] == "4.00 s of 10.00 s, 40% reached"
    assert shown["MBU, share of memory speed"].startswith("40.0% of")


def test_work_with_holes_is_told_beside_busy() -> None:
    figures = figures_of([reading(0.0), reading(10.0, decode=6, prefill=2, idle=2, launch_bound=6)])
    assert figures.launch_bound == pytest.approx(0.75)
    assert rows(figures)["device busy"] == "80%, 75% of it waiting for launches"


def test_a_server_that_tells_less_leaves_figures_empty() -> None:
    pages = [Readings.parse(f'vllm:generation_tokens_total{{engine="0"}} {count}\n', count) for count in (10.0, 30.0)]
    figures = figures_of(pages)
    assert figures.output_tokens == 20
    assert (figures.busy, figures.mbu, figures.mfu, figures.nvml, figures.floor_seconds) == (None,) * 5
    assert rows(figures) == {}


@pytest.fixture
def server() -> Iterator[ServerInThread]:
    server = ServerInThread(FakeOptions(alphabet=(300, 301)))
    yield server
    server.stop()


def test_a_real_page(server: ServerInThread) -> None:
    with ServerWatch(server.url, None) as watch:
        server.http.post("/v1/completions", json={"model": MODEL, "prompt": "你好", "max_tokens": 7, "ignore_eos": True})
    figures = watch.figures()
    assert figures is not None and figures.output_tokens == 7


def test_no_metrics_are_no_figures() -> None:
    with ServerWatch("http://127.0.0.1:9", None) as watch:
        pass
    assert watch.figures() is None
