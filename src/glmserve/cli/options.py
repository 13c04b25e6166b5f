"""Turns settings into flags, so that a setting is spelled once, in config.py.  Checking values is config.py's work, not typer's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from glmserve.config import Settings, allowed_values, flag_name, group_of

NEGATION = "no_"  # `--no-enforce-eager` is the parameter `no_enforce_eager`


def with_flags_of(*kinds: type[Settings], without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, whose last parameter is `**flags`, one flag for each field of `kinds`, but for those in `without`.

    The command finds in `flags` what was given for each field: text, a bool for a switch, or None where the flag was not given.
    """
    fields = {name: kind for kind in kinds for name in kind.model_fields if name not in without}
    options = [option for name, kind in fields.items() for option in _options(kind, name)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.kind is not one.VAR_KEYWORD]

        def run(**arguments: Any) -> None:
            negated = {name: arguments.pop(NEGATION + name, None) for name in fields}
            command(**{name: False if negated.get(name) else value for name, value in arguments.items()})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]  # what typer reads
        return run

    return decorate


def _options(kind: type[Settings], name: str) -> list[inspect.Parameter]:
    """The flag of a field; for a switch also its negation, which help leaves out since it would halve the room for words."""
    field, panel = kind.model_fields[name], group_of(kind, name)
    if field.annotation is not bool:
        given: Any = list[str] if isinstance(field.default, tuple) else str
        return [_parameter(name, given, typer.Option(flag_name(name), help=_help(kind, name, field), metavar="", rich_help_panel=panel))]
    shown = typer.Option(flag_name(name), help=_help(kind, name, field), metavar="", rich_help_panel=panel)
    return [_parameter(name, bool, shown), _parameter(NEGATION + name, bool, typer.Option(flag_name(NEGATION + name), hidden=True))]


def _parameter(name: str, given: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[given | None, option])


def _help(kind: type[Settings], name: str, field: FieldInfo) -> str:
    """What the field means, the words it takes, and its default where the description does not tell it."""
    notes = []
    if " or " in (allowed := allowed_values(kind, name)) and field.annotation is not bool:
        notes.append(allowed.replace(" or ", "|"))
    if isinstance(field.default, bool):
        notes.append(f"default: on; {flag_name(NEGATION + name)} turns it off" if field.default else "default: off")
    elif field.default not in (None, ()):
        notes.append(f"default: {field.default}")
    return (field.description or "") + "".join(rf" [dim]\[{note}][/dim]" for note in notes)
