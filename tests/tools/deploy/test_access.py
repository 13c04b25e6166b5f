"""What another user could not read is told before the service fails on it."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from glmserve.tools.deploy.access import closed_to_others, warnings_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`open/inner`, below folders that everybody may enter as far as this test can say."""
    inner = tmp_path / "open" / "inner"
    inner.mkdir(parents=True)
    made_by_pytest = 4 if "PYTEST_XDIST_WORKER" in os.environ else 3  # the last is the user's folder of all runs
    for place in (tmp_path, *tmp_path.parents)[:made_by_pytest]:
        place.chmod(0o755)
    return inner


def test_the_first_closed_folder_is_named(folder: Path) -> None:
    assert closed_to_others(folder) is None
    folder.parent.chmod(0o750)
    assert closed_to_others(folder) == folder.parent
    assert closed_to_others(folder, mounted=True) is None
    (said,) = warnings_for("somebody", [str(folder)])
    assert str(folder.parent) in said and "somebody" in said


def test_a_file_has_to_be_readable_itself(folder: Path) -> None:
    file = folder / "config.json"
    file.touch(0o644)
    file.chmod(0o640)
    assert closed_to_others(file) == file


def test_the_own_user_and_what_is_not_here_are_no_matter(folder: Path) -> None:
    folder.chmod(0o700)
    assert warnings_for(getpass.getuser(), [str(folder)]) == warnings_for("root", [str(folder)]) == ()
    assert warnings_for("somebody", [str(folder.parent / "elsewhere")]) == ()
