"""Which weight files a model folder should have, and whether each is whole.  Reads headers only: seconds for a 13 GB model, no torch."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from glmserve.models.lfs import is_lfs_pointer

_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02"  # a pickle: torch.save before 1.6
_MAX_HEADER = 100 * 2**20  # safetensors' own limit
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>safetensors|bin)")
KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))  # the order in which a server looks


@dataclass
class WeightFiles:
    """The weight files of a folder.  `trouble` says what is wrong with its index; `tensors` is the index's weight_map."""

    found: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    index: Path | None = None
    tensors: dict[str, str] = field(default_factory=dict)
    total_size: int | None = None  # bytes that the index promises
    trouble: str = ""


def weight_files(folder: Path) -> WeightFiles:
    """By the index where there is one, else by the numbers in the files' names."""
    for stem, suffix in KINDS:
        index = folder / f"{stem}.{suffix}.index.json"
        found = sorted(folder.glob(f"{stem}*.{suffix}"))
        if index.is_file():
            return _by_index(folder, index, found)
        if found:
            return WeightFiles(found, _missing_numbers(found))
    return WeightFiles()


def _by_index(folder: Path, index: Path, found: list[Path]) -> WeightFiles:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        tensors = {str(name): str(file) for name, file in content["weight_map"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if is_lfs_pointer(index):
            return WeightFiles(found, index=index, trouble=f"{index.name} is a git-lfs pointer")
        return WeightFiles(found, index=index, trouble=f"{index.name} cannot be read ({error})")
    names = sorted(set(tensors.values()))
    size = (content.get("metadata") or {}).get("total_size")
    return WeightFiles(
        [folder / name for name in names if (folder / name).is_file()],
        [name for name in names if not (folder / name).is_file()],
        index,
        tensors,
        int(size) if isinstance(size, int | float) else None,
    )


def _missing_numbers(found: list[Path]) -> list[str]:
    """Names that gaps in a numbering betray, where there is no index."""
    parts = [match for path in found if (match := _NUMBERED.fullmatch(path.name))]
    if not parts:
        return []
    first = parts[0]
    count, have = int(first["count"]), {int(part["number"]) for part in parts}
    name = f"{first['stem']}-{{:05d}}-of-{count:05d}.{first['suffix']}"
    return [name.format(number) for number in range(1, count + 1) if number not in have]


def fault_of(path: Path, tensors: dict[str, str]) -> str | None:
    """What is wrong with one weight file, or None.  `tensors` is the index's map; a safetensors file must hold what it promises."""
    head = _head(path, 16)
    if not head:
        return "is empty"
    if is_lfs_pointer(path):
        return None  # has a check of its own
    if head.lstrip().startswith(b"<"):
        return "is a web page, not weights: the download saved an error page"
    if path.suffix == ".bin":
        return _bin_fault(path, head)
    return _safetensors_fault(path, {name for name, file in tensors.items() if file == path.name})


def _safetensors_fault(path: Path, promised: set[str]) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if not 2 <= length <= _MAX_HEADER:
            return "is no safetensors file: its first bytes are no header's length"
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((last for _, last in entries.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        return "is cut off within its header" if size < 8 + length else "has a header that cannot be read"
    if size != end:
        return f"is cut off: {size:,} bytes of {end:,}" if size < end else f"is too long: {size:,} bytes where its header tells of {end:,}"
    if absent := sorted(promised - set(entries)):
        return f"lacks {len(absent)} tensors that the index promises, among them {absent[0]}"
    return None


def _bin_fault(path: Path, head: bytes) -> str | None:
    if head.startswith(_OLD_TORCH):
        return "was written by torch 1.5 or older; it cannot be checked or mapped: load it with torch and save it again"
    if not head.startswith(_ZIP):
        return "is no torch file"
    try:
        with zipfile.ZipFile(path) as archive:  # the directory is at the end, so a truncated file has none
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return f"is cut off: {path.stat().st_size:,} bytes, and the directory at its end is missing"
    return None if any(name.endswith("data.pkl") for name in names) else "is a zip file but holds no tensors"


def _head(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
