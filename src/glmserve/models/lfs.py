"""What git leaves in place of a large file where git-lfs was not there to fetch it: a text of three lines."""

from __future__ import annotations

from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FETCH_LFS = "In the folder: `git lfs install && git lfs pull`. Or download the files without git."


def is_lfs_pointer(path: Path) -> bool:
    """Whether that is all there is of the file.  Source: git-lfs, docs/spec.md."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def how_to_get_again(path: Path, otherwise: str = "Download it again.") -> str:
    """The end of a message about a file that cannot be read."""
    return f"It is a git-lfs pointer, not the file itself. {FETCH_LFS}" if is_lfs_pointer(path) else otherwise
