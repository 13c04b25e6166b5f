"""Fixtures that several wings share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glmserve.models.demo import resolve_model
from glmserve.protocol.errors import ModelLoadError

os.environ.setdefault("OMP_NUM_THREADS", "1")

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data beside the project; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("GLMSERVE_SHARED", PROJECT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"the golden data is not at {folder}: put the folder `shared` beside the project or set GLMSERVE_SHARED")
    return folder


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the built-in model."""
    return resolve_model("demo")


@pytest.fixture(scope="session")
def demo_en() -> Path:
    """The folder of the small English model, fetched on first use; tests that need it skip where it cannot be had."""
    try:
        return resolve_model("demo-en", progress=False)
    except ModelLoadError as error:
        pytest.skip(f"demo-en cannot be had here: {error}")
