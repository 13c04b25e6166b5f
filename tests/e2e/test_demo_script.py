"""What `make demo` runs, with shorter answers."""

from __future__ import annotations

import pytest

from scripts import demo as script


@pytest.mark.slow
def test_the_demonstration_answers_measures_and_ends_by_itself(
    demo: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "MAX_TOKENS", 16)
    script.main()
    shown = capfd.readouterr().out
    answer = shown.split("以春日为题写一首七言绝句")[-1].split("──")[0]
    assert "。" in answer  # a poem, or as much of it as fits
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] in (["1"], ["8"])]
    assert [row[0] for row in rows] == ["1", "8"]
    assert all(float(figure) > 0 for row in rows for figure in row[1:])
    assert "The server has been stopped" in shown
