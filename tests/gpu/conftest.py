"""GPU tests run where there is an NVIDIA GPU: `pytest tests/gpu`.  Each run is recorded in benchmarks/RESULTS.md."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back() -> None:
    """An engine takes most of a GPU's memory, and is a cycle: without a collection the next module's engine finds none.

    Before a module and not after it, since until then pytest itself holds what the last test was given.
    """
    gc.collect()
    torch.cuda.empty_cache()
