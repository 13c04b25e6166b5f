"""What an alert rule and an action are: the keys of an alert rules file, their types, limits and defaults.

Reading a file is in `observe.alert_file`, deciding when a rule fires in `observe.alerts`, acting in `observe.alert_actions`.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, field_validator, model_validator

from glmserve.observe.signals import SIGNALS

UNREACHABLE = "unreachable"  # the one signal that is no metric: 1 while a server does not answer who watches it from outside
PLACEHOLDERS = ("status", "rule", "severity", "signal", "value", "threshold", "server", "message", "text", "time")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> Any:
    """ "90s", "5m", "2h" or a number of seconds."""
    if isinstance(value, str):
        if not (match := _DURATION.fullmatch(value.strip())):
            raise ValueError(f"{value!r} cannot be read: write a number, or a time such as 500ms, 30s, 5m, 2h")
        return float(match[1]) * _SECONDS[match[2]]
    return value


def _threshold(value: Any) -> Any:
    """A number, a share such as "85%", or a duration such as "500ms"."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())):
        return float(match[1]) / 100
    return _seconds(value)


Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
Threshold = Annotated[float, BeforeValidator(_threshold)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _check_placeholders(value: Any) -> Any:
    """Strings may hold {text} and the like; anything else in braces is a slip.  Raises ValueError."""
    if isinstance(value, str):
        strangers = [name for _, name, _, _ in Formatter().parse(value) if name is not None and name not in PLACEHOLDERS]
        if strangers:
            raise ValueError(f"{{{strangers[0]}}} stands for nothing: there are {', '.join(PLACEHOLDERS)}; a brace itself is doubled")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _check_placeholders(part)
    return value


class WebhookAction(_Entry):
    """POSTs JSON to a URL: the notice as it is, or `body` with its placeholders filled."""

    type: Literal["webhook"]
    url: HttpUrl
    headers: dict[str, str] = {}
    body: dict[str, Any] | None = None
    timeout: Duration = 10.0

    _placeholders = field_validator("body")(_check_placeholders)


class EmailAction(_Entry):
    """Sends a mail through an SMTP server."""

    type: Literal["email"]
    host: str
    port: int = Field(25, ge=1, le=65535)
    tls: Literal["none", "starttls", "tls"] = "none"
    user: str | None = None
    password: str | None = None
    password_file: Path | None = None
    sender: str = Field("glmserve@localhost", alias="from")
    to: tuple[str, ...] = Field(min_length=1)
    timeout: Duration = 30.0

    @model_validator(mode="after")
    def _complete(self) -> EmailAction:
        if self.user and not (self.password or self.password_file):
            raise ValueError("a user needs a password or a password_file")
        return self


class CommandAction(_Entry):
    """Runs a program, without a shell: placeholders in its arguments are filled, the notice is JSON on its stdin."""

    type: Literal["command"]
    command: tuple[str, ...] = Field(min_length=1)
    timeout: Duration = 30.0

    _placeholders = field_validator("command")(_check_placeholders)


ACTIONS: dict[str, type[BaseModel]] = {"webhook": WebhookAction, "email": EmailAction, "command": CommandAction}
Action = Annotated[WebhookAction | EmailAction | CommandAction, Field(discriminator="type")]


class AlertRule(_Entry):
    """Fires when `signal`, taken over the last `over` seconds, has been above (or below) a threshold for `hold` seconds (`for:`).

    It is resolved once the signal has been on the good side of `resolve_at` for `resolve_after` seconds, so that a value near the
    threshold does not ring again and again.
    """

    name: str = Field(min_length=1)
    signal: str
    above: Threshold | None = None
    below: Threshold | None = None
    over: Duration = 60.0
    hold: Duration = Field(60.0, alias="for")
    resolve_at: Threshold | None = None
    resolve_after: Duration = 60.0
    severity: Literal["info", "warning", "critical"] = "warning"
    repeat: Duration = 4 * 3600.0
    message: str | None = None
    actions: tuple[str, ...] | None = None

    @field_validator("signal")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in (known := [*SIGNALS, UNREACHABLE]):
            close = get_close_matches(value, known, n=1)
            raise ValueError(f"{value!r} is no signal" + (f"; did you mean {close[0]}?" if close else f": there are {', '.join(known)}"))
        return value

    @model_validator(mode="after")
    def _one_side(self) -> AlertRule:
        if (self.above is None) == (self.below is None):
            raise ValueError("a rule takes either `above` or `below`")
        if self.resolve_at is not None and self.exceeds(self.resolve_at):
            raise ValueError("resolve_at lies on the bad side of the threshold: the alert would never end")
        return self

    @property
    def threshold(self) -> float:
        """The value at which it becomes bad."""
        limit = self.above if self.above is not None else self.below
        assert limit is not None
        return limit

    def exceeds(self, value: float) -> bool:
        """Whether `value` is on the bad side of the threshold."""
        return value > self.threshold if self.above is not None else value < self.threshold

    def recovered(self, value: float) -> bool:
        """Whether `value` is good again."""
        if self.resolve_at is None:
            return not self.exceeds(value)
        return value <= self.resolve_at if self.above is not None else value >= self.resolve_at


class AlertRules(_Entry):
    """A whole file: how often to look, what can be done, and the rules.  A rule without `actions` uses all of them."""

    interval: Annotated[float, BeforeValidator(_seconds), Field(ge=1)] = 15.0
    actions: dict[str, Action] = {}
    rules: tuple[AlertRule, ...] = Field(min_length=1)

    def actions_of(self, rule: AlertRule) -> tuple[str, ...]:
        """Names of the actions that a rule sets off; the log gets every notice anyway."""
        return tuple(self.actions) if rule.actions is None else rule.actions

    @property
    def longest_window(self) -> float:
        """Seconds of history that the rules look back."""
        return max(rule.over for rule in self.rules)
