"""The program of a supervisor file whose place the server takes: where it listens, who runs it, where its log lies.  Reads only.

The port is looked for where such programs say it: in the command, in the environment, in the Python script itself.
"""

from __future__ import annotations

import ast
import re
import shlex
from configparser import Error as IniError
from configparser import RawConfigParser
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from glmserve.protocol.errors import SettingsError

PORT_FLAGS = ("--port", "--server-port", "--server_port", "--server.port", "-p", "--bind", "-b")
PORT_VARIABLES = ("GRADIO_SERVER_PORT", "SERVER_PORT", "PORT")
PORT_ARGUMENTS = ("server_port", "port")  # of demo.launch(...) and uvicorn.run(...)
DEFAULT_PORTS = {"gradio": 7860, "streamlit": 8501, "uvicorn": 8000}  # where the script names none


@dataclass(frozen=True)
class OldProgram:
    """A [program:...] section.  Texts are as they stand in the file."""

    file: Path
    name: str
    lines: range  # of the section in the file, counted from 0
    options: dict[str, str]
    group: str | None  # the [group:...] it belongs to
    is_main_file: bool  # it configures supervisord itself

    def kept(self, option: str) -> str | None:
        """An option's value; None where it says nothing."""
        value = self.options.get(option, "").strip()
        return value if value and value.upper() not in ("AUTO", "NONE") else None

    @property
    def environment(self) -> dict[str, str]:
        """`A="1",B=2` as a mapping; what cannot be read so is left out."""
        try:
            words = list(shlex.shlex(self.options.get("environment", ""), posix=True, punctuation_chars=","))
        except ValueError:
            return {}
        return dict(word.split("=", 1) for word in words if "=" in word)

    def port(self) -> int:
        """Where it listens.  Raises SettingsError where nothing tells."""
        found = self._port_of_command() or self._port_of_environment() or self._port_of_script()
        if found is None:
            raise SettingsError(
                f"where the program {self.name} in {self.file} listens is found neither in its command, nor in its environment, nor in "
                "its script: give the port with --port."
            )
        return found

    def _port_of_command(self) -> int | None:
        words = [part for word in self._words() for part in word.split("=", 1)]
        for flag, value in pairwise(words):
            if flag in PORT_FLAGS and (number := re.fullmatch(r"(?:.*:)?(\d+)", value)):
                return int(number[1])
        return None

    def _port_of_environment(self) -> int | None:
        values = (self.environment.get(name, "") for name in PORT_VARIABLES)
        return next((int(value) for value in values if value.isdecimal()), None)

    def _port_of_script(self) -> int | None:
        text = self._script()
        for argument in PORT_ARGUMENTS:
            if (number := _number_given_for(argument, text)) is not None:
                return number
        told = f"{self.options.get('command', '')}\n{text}"
        return next((port for library, port in DEFAULT_PORTS.items() if library in told), None)

    def _script(self) -> str:
        name = next((word for word in self._words() if word.endswith(".py")), None)
        if name is None:
            return ""
        try:
            return (Path(self.options.get("directory", "/")) / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def _words(self) -> list[str]:
        try:
            return shlex.split(self.options.get("command", ""))
        except ValueError:
            return []


def read_old_program(place: str) -> OldProgram:
    """The program at FILE or FILE:PROGRAM.  Raises SettingsError for a file or a program that is not there."""
    file, wanted = _file_and_program(place)
    try:
        text = file.read_text(encoding="utf-8")
        sections = RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)  # as supervisor reads it
        sections.read_string(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {error}. --replace takes the supervisor file of the old program.") from error
    except IniError as error:
        raise SettingsError(f"{file} is no supervisor file: {error}") from error
    name = _choose(file, wanted, [title.removeprefix("program:").strip() for title in sections.sections() if title.startswith("program:")])
    title = next(title for title in sections.sections() if title.startswith("program:") and title.removeprefix("program:").strip() == name)
    program = OldProgram(
        file=file,
        name=name,
        lines=_lines_of(title, text),
        options=dict(sections.items(title)),
        group=_group_of(name, sections),
        is_main_file="supervisord" in sections,
    )
    if program.options.get("numprocs", "1").strip() != "1":
        raise SettingsError(f"the program {name} in {file} runs several processes (numprocs); the server takes the place of one.")
    return program


def _file_and_program(place: str) -> tuple[Path, str]:
    if not Path(place).exists() and ":" in place:
        file, _, program = place.rpartition(":")
        return Path(file).absolute(), program
    return Path(place).absolute(), ""


def _choose(file: Path, wanted: str, names: list[str]) -> str:
    if not names:
        raise SettingsError(f"{file} has no [program:...]: --replace takes the supervisor file of the old program.")
    if wanted and wanted not in names:
        raise SettingsError(f"{file} has no program {wanted}; it has {', '.join(names)}.")
    if not wanted and len(names) > 1:
        raise SettingsError(f"{file} has several programs ({', '.join(names)}): say which, as --replace {file}:{names[0]}")
    return wanted or names[0]


def _lines_of(title: str, text: str) -> range:
    """From the section's header to its last setting: what stands between it and the next header belongs to that one."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"[{title}]"))
    end = next((number for number in range(start + 1, len(lines)) if lines[number].startswith("[")), len(lines))
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith((";", "#"))):
        end -= 1
    return range(start, end)


def _group_of(name: str, sections: RawConfigParser) -> str | None:
    for title in sections.sections():
        members = sections.get(title, "programs", fallback="").split(",")
        if title.startswith("group:") and name in (member.strip() for member in members):
            return title.removeprefix("group:").strip()
    return None


def _number_given_for(argument: str, script: str) -> int | None:
    try:
        calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError):
        return None
    for keyword in (keyword for call in calls for keyword in call.keywords if keyword.arg == argument):
        if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, int):
            return keyword.value.value
    return None
