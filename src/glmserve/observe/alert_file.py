"""From an alert rules file to AlertRules.  What is wrong with a file is told with its line and key, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from glmserve.observe.alert_rules import ACTIONS, AlertRule, AlertRules
from glmserve.protocol.errors import SettingsError

Place = tuple[str | int, ...]


def load_alert_rules(path: Path) -> AlertRules:
    """Raises SettingsError that names the file, and line and key of everything that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"the alert rules {path} cannot be read: {error.strerror}. `glmserve monitor --show alert-rules` prints an example."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"the alert rules {path} are not UTF-8 text: {error}.") from error
    return parse_alert_rules(text, str(path))


def parse_alert_rules(text: str, name: str) -> AlertRules:
    """The rules in `text`; `name` stands for the file in errors.  Raises SettingsError as load_alert_rules does."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{name}{_yaml_trouble(error)}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"the alert rules {name} should hold `rules:` with a list under it.")
    problems: list[tuple[Place, str]] = []
    rules: AlertRules | None = None
    try:
        rules = AlertRules.model_validate(content)
        problems += _contradictions(rules)
    except ValidationError as error:
        found = error.errors()
        problems += [(problem["loc"], _words(problem)) for problem in found if len(found) == 1 or problem["type"] != "too_short"]
    problems += _repeated_keys(root)
    if problems or rules is None:
        raise SettingsError("\n".join(f"{name}, {words}" for _, words in sorted(_complaint(root, *problem) for problem in problems)))
    return rules


def _yaml_trouble(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f", line {error.problem_mark.line + 1}: this is not YAML: {error.problem}"
    return f" is not YAML: {error}"


def _contradictions(rules: AlertRules) -> Iterator[tuple[Place, str]]:
    seen: set[str] = set()
    for index, rule in enumerate(rules.rules):
        if rule.name in seen:
            yield ("rules", index, "name"), f"there are two rules named {rule.name!r}"
        seen.add(rule.name)
        for action in rule.actions or ():
            if action not in rules.actions:
                known = ", ".join(rules.actions) or "none"
                yield ("rules", index, "actions"), f"there is no action {action!r} under `actions:`, which has {known}"


def _words(problem: Any) -> str:
    """What pydantic found, in the words of a person who writes YAML."""
    if problem["type"] == "extra_forbidden":
        key, keys = str(problem["loc"][-1]), _keys_of(_kind_at(problem["loc"]))
        close = get_close_matches(key, keys, n=1, cutoff=0.7)
        return f"no such key; did you mean {close[0]}?" if close else f"no such key; there are {', '.join(keys)}"
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"].startswith("union_tag"):
        return "needs a `type`: webhook, email or command"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    given = problem["input"]
    return str(problem["msg"]).replace("Input should", "should") + (f", not {given!r}" if isinstance(given, str | int | float) else "")


def _kind_at(place: Place) -> type[BaseModel]:
    if place[0] == "actions":
        return ACTIONS[str(place[2])]
    return AlertRule if len(place) > 1 else AlertRules


def _keys_of(kind: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]


def _complaint(root: Any, place: Place, words: str) -> tuple[int, str]:
    """(line, what is wrong there), for a place as pydantic has it."""
    node, shown = root, ""
    line = root.start_mark.line
    for part in place:
        if (below := _below(node, part)) is not None:
            key, node = below
            line = key.start_mark.line
        elif part in ACTIONS and isinstance(node, yaml.MappingNode):
            continue  # pydantic's mark of which kind of action it took it for
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else str(part)
    return line, f"line {line + 1}: {shown or 'the file'}: {words}"


def _below(node: Any, part: str | int) -> tuple[Any, Any] | None:
    """(what marks the line, the value) one step down."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _repeated_keys(node: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """YAML lets the last of two equal keys win in silence."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key in {key for key in keys if keys.count(key) > 1}:
            yield (*place, key), "stands here twice"
        for key, value in node.value:
            yield from _repeated_keys(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _repeated_keys(value, (*place, index))
