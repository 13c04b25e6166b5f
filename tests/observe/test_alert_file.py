"""Alert rules files: what is taken, and how a bad one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmserve.observe.alert_file import load_alert_rules, parse_alert_rules
from glmserve.observe.alert_rules import EmailAction, WebhookAction
from glmserve.protocol.errors import SettingsError

GOOD = """
interval: 5s
actions:
  team:
    type: webhook
    url: http://localhost:9/hook
    body: {msgtype: text, text: {content: "{text}"}}
  mail:
    type: email
    host: localhost
    from: box@example.org
    to: [me@example.org]
rules:
  - {name: busy, signal: gpu_busy, above: 85%, for: 10m, over: 2m, repeat: 1d}
  - {name: slow, signal: ttft_p99, above: 500ms, resolve_at: 0.3, severity: critical, actions: [team]}
  - {name: idle, signal: mbu, below: 0.1}
"""


def complaint(text: str) -> str:
    with pytest.raises(SettingsError) as error:
        parse_alert_rules(text, "a.yaml")
    return str(error.value)


def rule(extra: str) -> str:
    return f"rules:\n- name: r\n  signal: gpu_busy\n{extra}"


def test_a_good_file() -> None:
    rules = parse_alert_rules(GOOD, "a.yaml")
    busy, slow, idle = rules.rules
    assert rules.interval == 5
    assert (busy.threshold, busy.hold, busy.over, busy.repeat) == (0.85, 600, 120, 86400)
    assert (slow.threshold, slow.resolve_at, slow.severity) == (0.5, 0.3, "critical")
    assert (idle.below, idle.hold, idle.severity) == (0.1, 60, "warning")
    assert rules.actions_of(busy) == ("team", "mail")
    assert rules.actions_of(slow) == ("team",)
    assert isinstance(rules.actions["team"], WebhookAction)
    assert isinstance(mail := rules.actions["mail"], EmailAction) and mail.sender == "box@example.org"
    assert rules.longest_window == 120


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rule("  above: 1\n  treshold: 3\n"), "a.yaml, line 5: rules[0].treshold: no such key"),
        (rule("  above: 1\n  repaet: 3m\n"), "line 5: rules[0].repaet: no such key; did you mean repeat?"),
        (rule("  above: lots\n"), "line 4: rules[0].above: 'lots' cannot be read"),
        (rule("  above: 1\n  for: soon\n"), "line 5: rules[0].for: 'soon' cannot be read"),
        (rule("  above: 1\n  for: -3\n"), "line 5: rules[0].for: should be greater than or equal to 0"),
        (rule("  above: 1\n  above: 2\n"), "line 4: rules[0].above: stands here twice"),
        (rule("  severity: info\n"), "line 2: rules[0]: a rule takes either `above` or `below`"),
        (rule("  above: 1\n  below: 2\n"), "either `above` or `below`"),
        (rule("  above: 1\n  resolve_at: 2\n"), "the alert would never end"),
        (rule("  above: 1\n  actions: [mail]\n"), "line 5: rules[0].actions: there is no action 'mail'"),
        (
            "rules:\n- name: r\n  signal: gpu_bussy\n  above: 1\n",
            "line 3: rules[0].signal: 'gpu_bussy' is no signal; did you mean gpu_busy?",
        ),
        ("rules:\n- signal: mbu\n  below: 1\n", "line 2: rules[0].name: is missing"),
        (rule("  above: 1\n") + "- name: r\n  signal: mbu\n  above: 1\n", "line 5: rules[1].name: there are two rules named 'r'"),
        (rule("  above: 1\n") + "actions:\n  hook: {type: hook}\n", "line 6: actions.hook: needs a `type`"),
        (rule("  above: 1\n") + "actions:\n  hook: {type: webhook, url: nowhere}\n", "line 6: actions.hook.url: should be a valid URL"),
        (rule("  above: 1\n") + 'actions:\n  c: {type: command, command: [echo, "{test}"]}\n', "{test} stands for nothing"),
        (rule("  above: 1\n") + "actions:\n  m: {type: email, host: h, to: [a], user: u}\n", "a user needs a password"),
        ("rules: []\n", "line 1: rules: "),
        ("interval: 3\n", "rules: is missing"),
        ("rules: [}", "a.yaml, line 1: this is not YAML: expected the node content"),
        ("just text", "should hold `rules:`"),
        ("", "should hold `rules:`"),
    ],
)
def test_a_bad_file_is_told_with_line_and_key(text: str, words: str) -> None:
    assert words in complaint(text)


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert len(complaint(rule("  above: lots\n  for: soon\n  tehn: x\n")).splitlines()) == 3


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.yaml cannot be read"):
        load_alert_rules(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"rules: \xff")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_alert_rules(tmp_path / "latin.yaml")
