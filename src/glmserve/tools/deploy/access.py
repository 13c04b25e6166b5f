"""Whether another user could read what the service needs: the usual reason why a service fails that worked by hand.  Only looks."""

from __future__ import annotations

import getpass
import stat
from collections.abc import Iterable
from pathlib import Path


def warnings_for(user: str, paths: Iterable[str], *, mounted: bool = False) -> tuple[str, ...]:
    """A sentence for each of `paths` that users other than its owner and group cannot reach.

    Of what is `mounted` into a container the folders above do not count.
    """
    if user in ("root", getpass.getuser()):
        return ()
    closed = dict.fromkeys(str(place) for path in paths if (place := closed_to_others(Path(path), mounted=mounted)))
    return tuple(f"{place} is open to its owner and group alone: see that user {user} can read it." for place in closed)


def closed_to_others(path: Path, *, mounted: bool = False) -> Path | None:
    """The first of a path's folders that others may not enter, or the path itself where they may not read it."""
    for place in [*([] if mounted else reversed(path.parents)), path]:
        try:
            mode = place.stat().st_mode
        except OSError:  # not there yet, or on another machine
            return None
        needed = (stat.S_IROTH if place == path else 0) | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
        if mode & needed != needed:
            return place
    return None
