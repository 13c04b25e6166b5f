"""What a check says: a verdict, the figures it saw, and what to do."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Verdict(StrEnum):
    """How it stands.  `SKIPPED` says nothing about health: the check could not be made here."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check.

    `summary` is one sentence with the figures that decided; `evidence` has all of them by name, unit at the end of the name;
    `mend` is what to do, a line a step, most useful first.
    """

    verdict: Verdict
    summary: str
    evidence: dict[str, Any] = {}
    mend: tuple[str, ...] = ()


class NotApplicableError(Exception):
    """A check that cannot be made here; the message is the reason, told to the user as it stands."""


def ok(summary: str, **evidence: Any) -> Finding:
    """All is well."""
    return Finding(Verdict.OK, summary, evidence)


def warn(summary: str, *mend: str, **evidence: Any) -> Finding:
    """It works, but worse than it could, or not for long."""
    return Finding(Verdict.WARN, summary, evidence, mend)


def fail(summary: str, *mend: str, **evidence: Any) -> Finding:
    """It is broken, or wastes most of what the machine could do."""
    return Finding(Verdict.FAIL, summary, evidence, mend)


def skipped(reason: str) -> Finding:
    """Not examined, and why."""
    return Finding(Verdict.SKIPPED, reason)
