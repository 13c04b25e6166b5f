"""Rung after rung against real servers with the fake engine: rows, failures, Ctrl-C, and no server left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from glmserve.engine.fake import FakeOptions
from glmserve.protocol.errors import ModelLoadError, SettingsError
from glmserve.tools.ladder import climb as climbing
from glmserve.tools.ladder import command
from glmserve.tools.ladder.climb import device_of
from glmserve.tools.ladder.command import NothingMeasuredError, bench_ladder
from glmserve.tools.ladder.results import Ladder
from glmserve.tools.ladder.settings import LadderConfig
from tests.server.serving import ServerInThread

QUICK = {"concurrency": 2, "num_prompts": 8, "input_len": 8, "output_len": 4, "duration": 20.0}


class Starter:
    """Starts servers as rungs ask for them, remembers how, and counts those that run."""

    def __init__(self, **broken: BaseException) -> None:
        self.broken = broken  # by the value of --batching
        self.flags: list[list[str]] = []
        self.num_running = 0

    @contextmanager
    def __call__(self, flags: Sequence[str]) -> Iterator[str]:
        self.flags.append(list(flags))
        mode = flags[list(flags).index("--batching") + 1]
        if mode in self.broken:
            raise self.broken[mode]
        server = ServerInThread(FakeOptions(alphabet=tuple(range(300, 340)), step_seconds=0.001), engine={"batching": mode})
        self.num_running += 1
        try:
            yield server.url
        finally:
            server.stop()
            self.num_running -= 1


def climb(starter: Starter, rungs: str = "0-3", output: Sequence[Path] = ()) -> tuple[Ladder, str]:
    console = Console(width=100, record=True, quiet=True)
    config = LadderConfig(rungs=rungs, output=tuple(map(str, output)), **QUICK)  # type: ignore[arg-type]
    ladder = bench_ladder("some-model", config, "glmserve bench ladder some-model", starter, console)
    return ladder, console.export_text()


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine would call its device fake."""
    monkeypatch.setattr(climbing, "device_of", lambda url: "CPU")


def test_every_rung_has_its_server_its_load_and_its_row(tmp_path: Path) -> None:
    starter, files = Starter(), [tmp_path / "ladder.md", tmp_path / "ladder.json", tmp_path / "ladder.html"]
    ladder, _ = climb(starter, "0-3,5", files)
    assert [flags[1] for flags in starter.flags] == ["serial", "async", "window", "continuous"], "none for fp8: there is no GPU"
    assert [row.number for row, _ in ladder.measured] == [0, 1, 2, 3]
    assert all(figures.completed == 8 and figures.requests_per_second > 0 for _, figures in ladder.measured)
    assert "needs a GPU" in ladder.rows[4].missing
    assert starter.num_running == 0
    written = json.loads(files[1].read_text())
    assert written["complete"] and [row["number"] for row in written["rows"]] == [0, 1, 2, 3, 5]
    assert all(path.stat().st_size > 1000 for path in files)


def test_a_rung_that_needs_a_gpu_is_not_measured_on_a_cpu() -> None:
    """Alone it must start a server to learn what it runs on."""
    starter = Starter()
    with pytest.raises(NothingMeasuredError):
        climb(starter, "4")
    assert len(starter.flags) == 1 and starter.num_running == 0


def test_a_server_that_does_not_start_is_a_row_and_the_others_still_run() -> None:
    ladder, _ = climb(Starter(window=ModelLoadError("the server could not start:\nno such flag")), "1-3")
    assert [row.number for row, _ in ladder.measured] == [1, 3]
    assert ladder.rows[1].missing.endswith("no such flag")
    assert ladder.complete


def test_ctrl_c_leaves_no_server_and_keeps_what_is_known(tmp_path: Path) -> None:
    starter, path = Starter(), tmp_path / "ladder.json"

    def interrupt(display: object, rung: object, seconds: float, num_done: int) -> None:
        if len(starter.flags) == 2:
            raise KeyboardInterrupt

    with mock.patch.object(command._ProgressDisplay, "loading", interrupt), pytest.raises(KeyboardInterrupt):
        climb(starter, "0-3", [path])
    assert starter.num_running == 0
    written = json.loads(path.read_text())
    assert [row["number"] for row in written["rows"]] == [0] and not written["complete"]


def test_the_server_says_what_it_computes_on() -> None:
    with Starter()(["--batching", "continuous"]) as url:
        assert device_of(url) == "fake engine"
    assert device_of("http://127.0.0.1:9") == ""


def test_a_load_that_fails_is_told() -> None:
    starter = Starter()
    config = LadderConfig(rungs="3", token_ids="1000000:2000000", **QUICK)  # type: ignore[arg-type]
    with pytest.raises(NothingMeasuredError):
        bench_ladder("m", config, "", starter, Console(quiet=True))
    assert starter.num_running == 0


def test_a_file_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    starter = Starter()
    with pytest.raises(SettingsError, match="no folder"):
        climb(starter, output=[tmp_path / "nowhere" / "ladder.md"])
    with mock.patch("glmserve.tools.ladder.png.find_spec", return_value=None), pytest.raises(SettingsError, match=r"glmserve\[reports\]"):
        climb(starter, output=[tmp_path / "ladder.png"])
    assert starter.flags == []
