"""What a person at a terminal of 80 columns sees, and what a program reads."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from glmserve.tools.doctor.checklist import ALL
from glmserve.tools.doctor.examine import Examination
from glmserve.tools.doctor.finding import Finding, fail, ok, skipped, warn
from glmserve.tools.doctor.report import as_json, show

DOCS = Path(__file__).parents[3] / "docs" / "doctor.md"
ABOUT = "glmserve with chatglm-6b at http://localhost:8000, on this machine"


def examination(**findings: Finding) -> Examination:
    on_service = [check for check in ALL if check.subject != "folder"]
    return Examination("u", ABOUT, [(check, findings.get(check.name, ok("it is as it should be"))) for check in on_service], 41.2)


def shown(examined: Examination) -> list[str]:
    console = Console(file=StringIO(), width=80, highlight=False)
    show(examined, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_a_healthy_server_fits_one_screen() -> None:
    lines = shown(examination(pcie=skipped("no NVIDIA GPU on this machine"), driver=skipped("no NVIDIA GPU on this machine")))
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert "skipped pcie, driver: no NVIDIA GPU on this machine" in [line.strip() for line in lines]
    assert lines[-1].startswith("Healthy: 14 ok, 2 skipped, in 41 s")


def test_what_is_wrong_stands_last_and_each_mend_once() -> None:
    examined = examination(
        limits=warn("it may open 256 files", "ulimit -n 65536"),
        pulses=fail("one request at a time", "glmserve serve MODEL", ratio=4.9),
        head_of_line=fail("a short message waits", "glmserve serve MODEL"),
    )
    lines = [" ".join(line.split()) for line in shown(examined)]
    assert [line for line in lines if line][-7:] == [
        "fail pulses one request at a time",
        "mend: glmserve serve MODEL",
        "fail head_of_line a short message waits",
        "mend: as for pulses",
        "warn limits it may open 256 files",
        "mend: ulimit -n 65536",
        "Needs mending: 13 ok, 1 warn, 2 fail, in 41 s",
    ]


def test_json_has_every_figure() -> None:
    told = json.loads(as_json(examination(pulses=fail("one request at a time", "glmserve serve MODEL", ratio=4.9))))
    assert (told["healthy"], told["about"]) == (False, ABOUT)
    pulses = next(check for check in told["checks"] if check["name"] == "pulses")
    assert pulses == {
        "name": "pulses",
        "title": "Messages share the model",
        "verdict": "fail",
        "summary": "one request at a time",
        "evidence": {"ratio": 4.9},
        "mend": ["glmserve serve MODEL"],
    }


def test_the_documentation_has_every_check() -> None:
    table = DOCS.read_text(encoding="utf-8").partition("## The checks")[2]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| `")]
    assert rows == [f"`{check.name}`" for check in ALL]
