"""One real server with the built-in model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glmserve.cli.private_server import private_server


@pytest.fixture(scope="session")
def demo_server(demo: Path) -> Iterator[str]:
    """URL of `glmserve serve demo`, started as a user does."""
    with private_server("demo", start_timeout=300) as url:
        yield url
