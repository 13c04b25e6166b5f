"""A template filled in, with each value written as its format wants it.  Knows the formats' quoting, not what is deployed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from glmserve.protocol.errors import SettingsError
from glmserve.tools.deploy.settings import Target

TEMPLATES = Path(__file__).with_name("templates")
FILES: dict[Target, str] = {
    "supervisor": "supervisor.conf.j2",
    "systemd": "systemd.service.j2",
    "docker": "Dockerfile.j2",
    "compose": "compose.yaml.j2",
    "kubernetes": "kubernetes.yaml.j2",
}


def render(target: Target, **values: Any) -> str:
    """The file's text.  Raises SettingsError for a value that the format cannot hold."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # none of these is HTML; each value goes through a filter of its format
    )
    environment.filters.update(
        plain=plain,
        comment=as_comment,
        json=as_json,
        words=as_json_list,
        supervisor=for_supervisor,
        systemd=for_systemd,
        compose=for_compose,
        compose_words=lambda words: as_json_list(word.replace("$", "$$") for word in words),
        kubernetes_words=lambda words: as_json_list(word.replace("$(", "$$(") for word in words),
    )
    return environment.get_template(FILES[target]).render(**values)


def plain(value: object) -> str:
    """Text that stays on its line.  Raises SettingsError for one that would not: it could add lines of its own."""
    text = str(value)
    if any(not letter.isprintable() for letter in text):
        raise SettingsError(f"{text!r} holds a letter that no line of a settings file can hold: choose another name.")
    return text


def as_json(value: object) -> str:
    """A text or number for YAML and Dockerfiles, which read JSON."""
    return json.dumps(plain(value) if isinstance(value, str) else value, ensure_ascii=False)


def as_json_list(words: Iterable[str]) -> str:
    """A list of words on one line."""
    return "[" + ", ".join(as_json(word) for word in words) + "]"


def for_compose(value: str) -> str:
    """A text in which `$` names no variable."""
    return as_json(value.replace("$", "$$"))


def for_supervisor(words: Iterable[str]) -> str:
    """A command: supervisor splits it as a shell does, after it has filled in `%(...)s`, and takes ` ;` and ` #` for comments."""
    line = " ".join(shlex.quote(plain(word)) for word in words).replace("%", "%%")
    if re.search(r"\s[;#]", line):
        raise SettingsError(
            f"supervisor takes what follows ` ;` or ` #` for a comment, so it cannot hold {line}: rename that folder or file."
        )
    return line


def for_systemd(words: Iterable[str]) -> str:
    """A command: `%` and `$` mean something to systemd, and words with other letters stand in double quotes."""
    return " ".join(_systemd_word(plain(word)) for word in words)


def _systemd_word(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w@%+=:,./$-]+", word) else f'"{escaped}"'


def as_comment(text: str, mark: str) -> str:
    """Each line of `text` behind `mark`."""
    return "\n".join(f"{mark} {line}".rstrip() for line in text.splitlines())
