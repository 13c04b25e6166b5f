"""The fixture models and their expected answers as cases that an engine can run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.engine.golden import GoldenCase

FIXTURES = Path(__file__).parents[1] / "fixtures/models"


def tiny_cases(folder: Path) -> list[GoldenCase]:
    """All cases of a fixture model; `data["logits"]` are those of the first step."""
    expected = json.loads((folder / "expected.json").read_text())
    return [GoldenCase(name, e["prompt"], e["tokens"], [], {"logits": np.array(e["logits"])}) for name, e in expected.items()]
