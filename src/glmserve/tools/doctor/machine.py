"""Facts of this machine that no server tells: whose port it is, limits, free memory and disk, which torch is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # the state in /proc/net/tcp


@dataclass(frozen=True)
class TorchBuild:
    """What an installed torch was built for; `cuda` is None for a build without CUDA."""

    version: str
    cuda: tuple[int, int] | None


@dataclass(frozen=True)
class OpenFiles:
    """The limit on open files and sockets of one process, and how many it has open (None where that is not told)."""

    pid: int
    soft: int
    hard: int
    in_use: int | None


class Machine:
    """This machine.  Tests point `proc` and `torch_folder` at folders of their own."""

    def __init__(self, proc: Path = Path("/proc"), torch_folder: Path | None = None) -> None:
        self._proc = proc
        self._torch_folder = torch_folder

    def has_address(self, host: str) -> bool:
        """Whether `host` is this machine: only an own address can be bound."""
        try:
            found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
        except OSError:
            return False
        return any(_can_bind(family, address) for family, _, _, _, address in found)

    def process_listening_on(self, port: int) -> int | None:
        """The process behind a local port; None where it belongs to another user or another container."""
        links = {f"socket:[{inode}]" for inode in self._listening_inodes(port)}
        for descriptors in self._proc.glob("[0-9]*/fd"):
            try:
                if any(os.readlink(link) in links for link in descriptors.iterdir()):
                    return int(descriptors.parent.name)
            except OSError:  # not ours to look at, or gone
                continue
        return None

    def _listening_inodes(self, port: int) -> set[str]:
        inodes = set()
        for table in ("net/tcp", "net/tcp6"):
            try:
                rows = (self._proc / table).read_text().splitlines()[1:]
            except OSError:
                continue
            for row in map(str.split, rows):
                if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port:
                    inodes.add(row[9])
        return inodes

    def open_files(self, pid: int | None) -> OpenFiles | None:
        """Limits of a process, of this one where `pid` is None.  None where the system does not tell."""
        pid = os.getpid() if pid is None else pid
        try:
            text = (self._proc / str(pid) / "limits").read_text()
        except OSError:
            return None
        found = re.search(r"^Max open files\s+(\d+|unlimited)\s+(\d+|unlimited)", text, re.MULTILINE)
        if found is None:
            return None
        soft, hard = (2**31 if word == "unlimited" else int(word) for word in found.groups())
        try:
            in_use: int | None = sum(1 for _ in (self._proc / str(pid) / "fd").iterdir())
        except OSError:
            in_use = None
        return OpenFiles(pid, soft, hard, in_use)

    def available_memory(self) -> int | None:
        """Bytes that a new program may take."""
        try:
            found = re.search(r"^MemAvailable:\s+(\d+) kB", (self._proc / "meminfo").read_text(), re.MULTILINE)
        except OSError:
            return None
        return int(found[1]) * 1024 if found else None

    def free_disk(self, folder: Path) -> int:
        """Bytes left where `folder` lies, or will lie."""
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def torch_build(self) -> TorchBuild | None:
        """The torch of this Python, read from its files: importing it takes seconds and a GPU's memory."""
        folder = self._torch_folder or _torch_folder()
        try:
            text = (folder / "version.py").read_text() if folder else ""
        except OSError:
            return None
        version = re.search(r"^__version__\s*=\s*'([^']+)'", text, re.MULTILINE)
        cuda = re.search(r"^cuda\b[^=]*=\s*'(\d+)\.(\d+)", text, re.MULTILINE)
        return TorchBuild(version[1], (int(cuda[1]), int(cuda[2])) if cuda else None) if version else None


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
            return True
    except OSError:
        return False


def _torch_folder() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec is not None and spec.origin else None
