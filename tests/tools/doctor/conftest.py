"""Servers to examine, and an examination as short as a test wants it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmserve.tools.doctor.examine import Examination, examine
from glmserve.tools.doctor.finding import Finding
from glmserve.tools.doctor.gpu import Gpu, GpuReader, GpuSample
from glmserve.tools.doctor.machine import Machine
from glmserve.tools.doctor.settings import DoctorConfig
from glmserve.tools.doctor.trials import Sizes
from tests.tools.doctor.faulty_server import FaultyServer, ForgetfulHandler

SMALL = Sizes(
    short_tokens=10, short_seconds=60, long_factor=6, pause=0, num_pages=10, num_one_token=10, busy_seconds=0.3, hang_up_seconds=1.0
)


class NoGpu:
    """A machine without a GPU, also where the tests run on one that has one."""

    def gpus(self) -> list[Gpu]:
        return []

    def sample(self, gpu: Gpu) -> GpuSample:
        raise AssertionError("there is none")


def look(
    target: str,
    checks: str | None = None,
    *,
    reader: GpuReader | None = None,
    machine: Machine | None = None,
    sizes: Sizes = SMALL,
    **settings: Any,
) -> Examination:
    """An examination of `target`."""
    config = DoctorConfig(checks=checks, **settings)
    return asyncio.run(examine(target, config, lambda words: None, machine=machine, reader=reader or NoGpu(), sizes=sizes))


def finding(target: str, check: str, **how: Any) -> Finding:
    """What one check says of `target`."""
    ((_, found),) = look(target, check, **how).findings
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., FaultyServer]]:
    """A FaultyServer with these attributes."""
    servers: list[FaultyServer] = []

    def start(keeps_connections: bool = True, **faults: Any) -> FaultyServer:
        server = FaultyServer(None if keeps_connections else ForgetfulHandler)
        for name, value in faults.items():
            assert hasattr(server, name)
            setattr(server, name, value)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cuda_machine(tmp_path: Path) -> Machine:
    """This machine with a torch for CUDA 13.0."""
    (tmp_path / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    return Machine(torch_folder=tmp_path)
