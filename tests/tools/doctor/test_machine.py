"""Facts of this machine, with a /proc of the test's own where the real one cannot be known."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from glmserve.tools.doctor.machine import Machine, TorchBuild


def test_whose_port_it_is() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert Machine().process_listening_on(listener.getsockname()[1]) == os.getpid()
    assert Machine().process_listening_on(1) is None


def test_which_addresses_are_its_own() -> None:
    machine = Machine()
    assert machine.has_address("127.0.0.1")
    assert machine.has_address("localhost")
    assert not machine.has_address("192.0.2.1")  # an address of documents, which no machine has


def test_limits_of_a_process() -> None:
    files = Machine().open_files(None)
    assert files is not None
    assert files.pid == os.getpid()
    assert 0 < (files.in_use or 0) < files.soft <= files.hard


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", TorchBuild("2.13.0+cpu", None)),
        ("__version__ = '2.11.0'\ncuda: Optional[str] = '13.0'\n", TorchBuild("2.11.0", (13, 0))),
        ("nothing", None),
    ],
)
def test_which_torch_is_installed(tmp_path: Path, text: str, build: TorchBuild | None) -> None:
    (tmp_path / "version.py").write_text(text)
    assert Machine(torch_folder=tmp_path).torch_build() == build


def test_the_torch_of_this_python_is_found_without_loading_it() -> None:
    assert Machine().torch_build() is not None


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    machine = Machine(proc=tmp_path, torch_folder=tmp_path)
    assert machine.available_memory() is None
    assert machine.open_files(None) is None
    assert machine.torch_build() is None
    assert machine.process_listening_on(80) is None
