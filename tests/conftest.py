"""Fixtures that several wings share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data beside the project; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("GLMSERVE_SHARED", PROJECT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"the golden data is not at {folder}: put the folder `shared` beside the project or set GLMSERVE_SHARED")
    return folder
