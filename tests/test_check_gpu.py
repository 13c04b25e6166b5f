"""`scripts/check_gpu` names its parts, since some of them must run alone; none may be forgotten."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_every_file_of_gpu_tests_is_a_part() -> None:
    script = (PROJECT / "scripts/check_gpu").read_text(encoding="utf-8")
    names = [path.stem.removeprefix("test_") for path in (PROJECT / "tests/gpu").glob("test_*.py")]
    assert names and [name for name in names if name not in script] == []
