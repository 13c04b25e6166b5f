"""Each action against a real receiver: an HTTP server, an SMTP server, a program."""

from __future__ import annotations

import json
import logging
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glmserve.observe.alert_actions import AlertSender
from glmserve.observe.alert_file import parse_alert_rules
from glmserve.observe.alert_rules import AlertRules
from glmserve.observe.alerts import Notice, Status


class WebhookReceiver(ThreadingHTTPServer):
    """Keeps what was POSTed; answers with the next of `statuses`, or 200."""

    daemon_threads = True

    def __init__(self, statuses: list[int] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _WebhookHandler)
        self.statuses = statuses or []
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []


class _WebhookHandler(BaseHTTPRequestHandler):
    server: WebhookReceiver

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers.get("X-Key"))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()


class MailReceiver(socketserver.ThreadingTCPServer):
    """As much of SMTP as smtplib speaks to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _MailHandler)
        self.mails: list[Message] = []
        self.logins: list[str] = []
        self.envelopes: list[str] = []


class _MailHandler(socketserver.StreamRequestHandler):
    server: MailReceiver

    def handle(self) -> None:
        self._say("220 here")
        while line := self.rfile.readline().decode().strip():
            word = line.split(" ")[0].upper()
            if word == "EHLO":
                self._say("250-here\r\n250 AUTH PLAIN")
            elif word == "AUTH":
                self.server.logins.append(line.split(" ")[-1])
                self._say("235 welcome")
            elif word == "DATA":
                self._take_mail()
            elif word == "QUIT":
                return self._say("221 bye")
            else:
                self.server.envelopes.append(line)
                self._say("250 ok")

    def _take_mail(self) -> None:
        self._say("354 go on")
        lines = b""
        while (line := self.rfile.readline()) != b".\r\n":
            lines += line
        self.server.mails.append(message_from_bytes(lines))
        self._say("250 taken")

    def _say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


@contextmanager
def running(server: Any) -> Iterator[Any]:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def rules_with(**actions: dict[str, object]) -> AlertRules:
    return parse_alert_rules(str({"actions": actions, "rules": [{"name": "queue", "signal": "requests_waiting", "above": 10}]}), "test")


def deliver(rules: AlertRules, *statuses: Status, pauses: tuple[float, ...] = ()) -> None:
    """Sends notices and waits for their delivery."""
    sender = AlertSender(rules, pauses)
    for status in statuses:
        sender.send(Notice(status, rules.rules[0], "http://box", 31.0, 0.0, 60.0))
    sender.close(timeout=20)


def test_a_webhook_gets_json() -> None:
    with running(WebhookReceiver()) as receiver:
        deliver(
            rules_with(hook={"type": "webhook", "url": f"http://127.0.0.1:{receiver.server_address[1]}/", "headers": {"X-Key": "k"}}),
            Status.FIRING,
            Status.RESOLVED,
        )
    firing, resolved = receiver.bodies
    assert firing["status"] == "firing" and firing["value"] == 31.0 and firing["rule"] == "queue"
    assert firing["text"] == "FIRING [warning] queue at http://box: requests_waiting is 31, above 10"
    assert resolved["status"] == "resolved"
    assert receiver.keys == ["k", "k"]


def test_a_webhook_may_have_a_form_of_its_own() -> None:
    body = {"msgtype": "text", "text": {"content": "{status}: {rule} {{}}"}, "at": ["{severity}", 1]}
    with running(WebhookReceiver()) as receiver:
        deliver(rules_with(hook={"type": "webhook", "url": f"http://127.0.0.1:{receiver.server_address[1]}/", "body": body}), Status.FIRING)
    assert receiver.bodies == [{"msgtype": "text", "text": {"content": "firing: queue {}"}, "at": ["warning", 1]}]


def test_a_failed_delivery_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with running(WebhookReceiver([500, 503])) as receiver:
        url = f"http://127.0.0.1:{receiver.server_address[1]}/"
        deliver(rules_with(hook={"type": "webhook", "url": url}), Status.FIRING, pauses=())
        assert "alert action hook failed" in caplog.text and "500" in caplog.text
        sender = AlertSender(rules_with(hook={"type": "webhook", "url": url}), (0.01,))
        sender.send(Notice(Status.FIRING, rules_with().rules[0], "http://box", 31.0, 0.0, 0.0))
        for _ in range(500):
            if len(receiver.bodies) == 3:
                break
            threading.Event().wait(0.01)
        sender.close()
    assert [body["status"] for body in receiver.bodies] == ["firing"] * 3


def test_mail(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    with running(MailReceiver()) as receiver:
        mail = {"type": "email", "host": "127.0.0.1", "port": receiver.server_address[1], "from": "box@example.org"}
        mail |= {"to": ["a@example.org", "b@example.org"], "user": "me", "password_file": str(tmp_path / "password")}
        deliver(rules_with(mail=mail), Status.FIRING)
    (message,) = receiver.mails
    assert message["Subject"] == "[glmserve] FIRING: queue"
    assert message["To"] == "a@example.org, b@example.org"
    assert "requests_waiting is 31, above 10" in str(message.get_payload())
    assert any("b@example.org" in line for line in receiver.envelopes)
    assert receiver.logins == ["AG1lAHNlY3JldA=="]  # \0me\0secret


def test_a_command_gets_arguments_and_json(tmp_path: Path) -> None:
    program = "import json, sys; open(sys.argv[1], 'w').write(sys.argv[2] + '|' + str(json.load(sys.stdin)['value']))"
    command = [sys.executable, "-c", program, str(tmp_path / "out"), "{status} $(id) {rule}"]
    deliver(rules_with(do={"type": "command", "command": command}), Status.FIRING)
    assert (tmp_path / "out").read_text() == "firing $(id) queue|31.0"  # no shell in between


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ({"type": "webhook", "url": "http://127.0.0.1:9/"}, "refused"),
        ({"type": "email", "host": "127.0.0.1", "port": 9, "to": ["a"]}, "refused"),
        ({"type": "command", "command": ["/no/such/program"]}, "No such file"),
        ({"type": "command", "command": [sys.executable, "-c", "import sys; sys.exit('broken')"]}, "exited with 1: broken"),
        ({"type": "command", "command": [sys.executable, "-c", "import time; time.sleep(60)"], "timeout": "200ms"}, "timed out"),
    ],
)
def test_a_failing_action_is_logged_and_hurts_nobody(action: dict[str, object], words: str, caplog: pytest.LogCaptureFixture) -> None:
    deliver(rules_with(it=action), Status.FIRING)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert words in record.getMessage() and "not told: FIRING" in record.getMessage()


def test_every_notice_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "glmserve"):
        deliver(rules_with(), Status.FIRING, Status.RESOLVED)
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


def test_one_slow_action_does_not_hold_up_another(tmp_path: Path) -> None:
    release = tmp_path / "release"
    wait = f"import os, time\nwhile not os.path.exists({str(release)!r}): time.sleep(0.01)"
    with running(WebhookReceiver()) as receiver:
        url = f"http://127.0.0.1:{receiver.server_address[1]}/"
        slow, quick = {"type": "command", "command": [sys.executable, "-c", wait]}, {"type": "webhook", "url": url}
        sender = AlertSender(rules := rules_with(slow=slow, quick=quick))
        sender.send(Notice(Status.FIRING, rules.rules[0], "http://box", 31.0, 0.0, 0.0))
        for _ in range(1000):
            if receiver.bodies:
                break
            threading.Event().wait(0.01)
        assert receiver.bodies
        release.touch()
        sender.close()
