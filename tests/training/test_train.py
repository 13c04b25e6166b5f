"""A training run that is stopped goes on where it was, and a whole one leaves everything that the next steps need."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.poems import TRAIN, VALID, Poem
from training.train import Run, Settings
from training.vocabulary import PIECES, Vocabulary

TINY = Settings(
    minutes=60, batch_rows=2, valid_every=100, checkpoint_every=2, workers=1, hidden_size=32, num_heads=2, num_layers=2, max_requests=2,
    max_answer=3,
)  # fmt: skip


@pytest.fixture
def data(poems: list[Poem], vocabulary: Vocabulary, tmp_path: Path) -> Path:
    """A folder as training.prepare makes it."""
    lines = [json.dumps({"kind": p.kind, "dynasty": p.dynasty, "author": p.author, "title": p.title, "lines": p.lines}) for p in poems]
    for name, copies in ((TRAIN, 20), (VALID, 1)):
        (tmp_path / name).write_bytes(lzma.compress("\n".join(lines * copies).encode()))
    (tmp_path / PIECES).write_text(json.dumps(vocabulary.pieces))
    return tmp_path


def test_it_resumes_from_its_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    out.mkdir()
    monkeypatch.setattr(Run, "_write", lambda self: None)  # stopped before its end: the checkpoint stays
    stopped = Run(replace(TINY, max_steps=2), data, out, resume=False)
    stopped.go()
    resumed = Run(replace(TINY, max_steps=4), data, out, resume=True)
    assert (resumed.step, resumed.tokens, resumed.epoch) == (2, stopped.tokens, 1)
    for name, tensor in stopped.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])
    resumed.go()
    assert resumed.step == 4
    assert resumed.tokens > stopped.tokens


def test_a_whole_run_leaves_weights_a_log_and_a_report(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    Run(replace(TINY, max_steps=2), data, out, resume=False).go()
    assert {"loss.csv", "training.json", "report.json", "samples.json", "weights-0.npz"} <= {path.name for path in out.iterdir()}
    assert not (out / "checkpoint.pt").exists()
    assert json.loads((out / "training.json").read_text())["steps"] == 2
