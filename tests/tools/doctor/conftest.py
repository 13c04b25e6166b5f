"""Servers to examine, and a machine to examine them on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmserve.tools.doctor.machine import Machine
from tests.tools.doctor.faulty_server import FaultyServer, ForgetfulHandler


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
