"""Servers to watch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tools.monitor.scripted_metrics import Clock, MetricsServer


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    """One with metrics of our own."""
    running = MetricsServer()
    yield running
    running.stop()


@pytest.fixture
def vllm() -> Iterator[MetricsServer]:
    """One that speaks as vLLM does, and has neither /ready nor /slow."""
    running = MetricsServer("vllm:")
    running.ready = running.slow = None
    yield running
    running.stop()
