"""The table and the pictures say what was measured, and what was not and why."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glmserve.tools.ladder.charts import panels
from glmserve.tools.ladder.html import html
from glmserve.tools.ladder.table import COLUMNS, cells, markdown
from tests.tools.ladder.ladders import figures, three_rungs


def test_a_row() -> None:
    rows = three_rungs().rows
    assert cells(rows[0]) == [
        "0 one at a time",
        "2",
        "4 s",
        "5 s",
        "64",
        "1",
        "50%",
        "90%",
        "25%",
        "0.5",
        "8 req/s, 1.24 s, 25% utilization",
    ]
    assert cells(rows[1])[7] == "-", "no NVML"
    assert cells(rows[2])[:2] == ["5 fp8", "the server could not start: fp8 needs another GPU"]
    assert {len(cells(row)) for row in rows} == {len(COLUMNS)}


def test_markdown_is_a_table_with_the_sum_below() -> None:
    text = markdown(three_rungs())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1
    assert "From rung 0 to rung 3: requests/s x4, mean latency -75%, cost -75%, utilization 50% -> 97%." in text
    assert "The article: requests/s x4, mean latency -47%, cost -62%, utilization 25% -> 90%." in text
    assert "1,000 requests at 3.6 an hour" in text and "Cut short" not in text


def test_a_rung_whose_device_waits_for_launches_says_so() -> None:
    ladder = three_rungs()
    ladder.rows[0].figures = figures(launch_bound=0.98)
    ladder.rows[1].figures = figures(launch_bound=0.01)
    told = [line for line in markdown(ladder).splitlines() if "launched kernels" in line]
    assert told == ["Rung 0: in 98% of the busy time the host launched kernels no faster than the device ran them, which waited."]


def test_a_run_that_was_cut_short_or_short_of_answers_says_so() -> None:
    ladder = three_rungs()
    ladder.complete = False
    ladder.rows[0].figures = figures(settled=False, completed=3)
    ladder.rows[1].figures = figures(failed=7)
    text = markdown(ladder)
    assert "Cut short" in text
    assert "Rung 0: only 3 answers" in text and "--duration" in text
    assert "Rung 3: 7 of 207 requests failed." in text


class Page(HTMLParser):
    """Keeps what a page shows and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def test_the_page_is_whole_and_loads_nothing() -> None:
    source = html(three_rungs())
    page = Page()
    page.feed(source)
    assert page.open == [], "every tag is closed"
    assert {"some <model> on NVIDIA H200", "50%, MBU 25%", "1 s, p99 2 s"} <= set(page.texts)
    assert "the server could not start: fp8 needs another GPU" in page.texts
    assert not {"src", "href", "onclick"} & set(page.attributes) and not re.search(r"https?:|@import|url\(|<script", source)


def test_bars_are_to_scale() -> None:
    shown = {panel.title: panel for panel in panels(three_rungs())}
    assert [bar.length for bar in shown["Requests per second"].bars] == [0.25, 1.0]
    assert [(bar.length, bar.mark) for bar in shown["Latency"].bars] == [(0.8, 1.0), (0.2, 0.4)]
    used = next(panel for title, panel in shown.items() if title.startswith("Utilization"))
    assert [(bar.length, bar.mark) for bar in used.bars] == [(0.5, 0.25), (0.97, 0.6)], "busy, since NVML is not known of all"
    assert [bar.length for bar in shown["Cost of 1,000 requests"].bars] == [1.0, 0.25]


def test_utilization_is_nvmls_where_all_rungs_have_it() -> None:
    ladder = three_rungs()
    for (_, measured), nvml in zip(ladder.measured, (0.25, 0.75), strict=True):
        measured.nvml = nvml
    used = next(panel for panel in panels(ladder) if panel.title.startswith("Utilization"))
    assert [bar.length for bar in used.bars] == [0.25, 0.75] and "NVML" in used.hint
    assert ladder.headline is not None and ladder.headline.utilization == (0.25, 0.75)


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="a .png chart needs glmserve[reports]")
    from glmserve.tools.ladder.png import write_png

    write_png(three_rungs(), tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
