"""An examination for people, who see what is wrong with its mend, and for programs (JSON)."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from glmserve.tools.doctor.checklist import ALL
from glmserve.tools.doctor.examine import Examination
from glmserve.tools.doctor.finding import Finding, Verdict
from glmserve.tools.doctor.patient import Check

STYLES = {Verdict.FAIL: "bold red", Verdict.WARN: "bold yellow", Verdict.OK: "green", Verdict.SKIPPED: "dim"}
NAME_WIDTH = max(len(check.name) for check in ALL)
VERDICT_WIDTH = len("skipped")


def show(examination: Examination, console: Console) -> None:
    """A line for what is well, then what was not examined and why; what is wrong stands last, where a terminal's reader looks."""
    console.print(Text(examination.about), style="bold")
    by_verdict: dict[Verdict, list[tuple[Check, Finding]]] = {verdict: [] for verdict in Verdict}
    for check, finding in examination.findings:
        by_verdict[finding.verdict].append((check, finding))
    for check, finding in by_verdict[Verdict.OK]:
        console.print(_line(Verdict.OK, check.name, finding.summary))
    for reason, names in _by_reason(by_verdict[Verdict.SKIPPED]).items():
        console.print(_line(Verdict.SKIPPED, ", ".join(names), reason, wide=True))
    told: dict[str, str] = {}
    troubles = [*by_verdict[Verdict.FAIL], *by_verdict[Verdict.WARN]]
    for check, finding in troubles:
        _show_trouble(check, finding, told, console)
    if troubles:
        console.print()
    console.print(Text(_sum(examination), style="bold"))


def _show_trouble(check: Check, finding: Finding, told: dict[str, str], console: Console) -> None:
    """What is to be done is said once: a server that lacks batching fails several checks."""
    console.print()
    console.print(_line(finding.verdict, check.name, finding.summary))
    for step in finding.mend:
        table = Table.grid(padding=(0, 1))
        table.add_row(Text("mend:", style="bold"), Text(f"as for {told[step]}" if step in told else step))
        console.print(Padding(table, (0, 0, 0, VERDICT_WIDTH + 1)))
        told.setdefault(step, check.name)


def _line(verdict: Verdict, name: str, words: str, wide: bool = False) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=VERDICT_WIDTH)
    if wide:
        table.add_row(Text(verdict, STYLES[verdict]), Text(f"{name}: {words}", STYLES[verdict]))
        return table
    table.add_column(width=NAME_WIDTH)
    table.add_row(Text(verdict, STYLES[verdict]), Text(name, "bold" if verdict in (Verdict.FAIL, Verdict.WARN) else ""), Text(words))
    return table


def _by_reason(skipped: list[tuple[Check, Finding]]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for check, finding in skipped:
        reasons.setdefault(finding.summary, []).append(check.name)
    return reasons


def _sum(examination: Examination) -> str:
    counts = {verdict: sum(finding.verdict is verdict for _, finding in examination.findings) for verdict in Verdict}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{'Healthy' if examination.is_healthy else 'Needs mending'}: {told or 'no check applies'}, in {examination.seconds:.0f} s"


def as_json(examination: Examination) -> bytes:
    """The same for programs: {target, about, healthy, seconds, checks: [{name, title, verdict, summary, evidence, mend}]}."""
    checks = [{"name": check.name, "title": check.title, **msgspec.to_builtins(finding)} for check, finding in examination.findings]
    whole: dict[str, Any] = {
        "target": examination.target,
        "about": examination.about,
        "healthy": examination.is_healthy,
        "seconds": examination.seconds,
        "checks": checks,
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=1)


def show_list(console: Console) -> None:
    """All checks: name, what it is about, and on what it is made."""
    for check in ALL:
        console.print(f"{check.name:<{NAME_WIDTH}} {check.subject:<8} {check.title}")
