"""What a notice sets off: a line in the log always, and webhooks, mails and commands as the rules file says.

Each action has a thread of its own, so that a slow one delays neither the server nor the others and each tells things in order.
A delivery that fails is tried again, then logged and forgotten; it never raises into whoever noticed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import smtplib
import ssl
import subprocess
import threading
import time
from email.message import EmailMessage
from queue import Full, Queue
from typing import Any, assert_never

import httpx

from glmserve.observe.alert_rules import AlertRules, CommandAction, EmailAction, WebhookAction
from glmserve.observe.alerts import Notice, Status

logger = logging.getLogger(__name__)

PAUSES = (1.0, 5.0)  # seconds before the second and the third try
MOST_WAITING = 100  # notices of one action; more are dropped, since old news helps nobody
Target = WebhookAction | EmailAction | CommandAction


class AlertSender:
    """Logs notices and hands them to their actions.  `close` lets what is under way finish."""

    def __init__(self, rules: AlertRules, pauses: tuple[float, ...] = PAUSES) -> None:
        self._rules = rules
        self._workers = {name: _Worker(name, action, pauses) for name, action in rules.actions.items()}

    def send(self, notice: Notice) -> None:
        """Never blocks, never raises."""
        logger.log(logging.WARNING if notice.status is Status.FIRING else logging.INFO, "%s", notice.text)
        for name in self._rules.actions_of(notice.rule):
            self._workers[name].put(notice)

    def close(self, timeout: float = 5.0) -> None:
        """Waits for deliveries under way, all together for at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for worker in self._workers.values():
            worker.ask_to_end()
        for worker in self._workers.values():
            worker.join(max(0.0, deadline - time.monotonic()))


class _Worker(threading.Thread):
    """Delivers the notices of one action, one after the other."""

    def __init__(self, name: str, action: Target, pauses: tuple[float, ...]) -> None:
        super().__init__(name=f"alert action {name}", daemon=True)
        self._action = action
        self._pauses = pauses
        self._waiting: Queue[Notice | None] = Queue(MOST_WAITING)  # None wakes it up to end
        self._ending = threading.Event()
        self._started_once = False

    def put(self, notice: Notice) -> None:
        if not self._started_once:  # a thread only where something happens
            self._started_once = True
            self.start()
        try:
            self._waiting.put_nowait(notice)
        except Full:
            logger.error("%s cannot keep up: dropped %s", self.name, notice.text)

    def ask_to_end(self) -> None:
        self._ending.set()
        with contextlib.suppress(Full):  # then it sees the event once it is through
            self._waiting.put_nowait(None)

    def join(self, timeout: float | None = None) -> None:
        if self._started_once:
            super().join(timeout)

    def run(self) -> None:
        while not (self._ending.is_set() and self._waiting.empty()):
            if (notice := self._waiting.get()) is not None:
                self._deliver(notice)

    def _deliver(self, notice: Notice) -> None:
        for pause in (*self._pauses, None):
            try:
                return perform(self._action, notice)
            except Exception as error:
                if pause is None or self._ending.is_set():
                    logger.error("%s failed (%s): not told: %s", self.name, error, notice.text)
                    return
                logger.info("%s failed (%s): trying again in %g s", self.name, error, pause)
                self._ending.wait(pause)


def perform(action: Target, notice: Notice) -> None:
    """Do it now, in this thread.  Raises whatever goes wrong."""
    match action:
        case WebhookAction():
            _post(action, notice)
        case EmailAction():
            _mail(action, notice)
        case CommandAction():
            _run(action, notice)
        case _:
            assert_never(action)


def _post(action: WebhookAction, notice: Notice) -> None:
    body = notice.fields() if action.body is None else _filled(action.body, notice)
    httpx.post(str(action.url), json=body, headers=action.headers, timeout=action.timeout).raise_for_status()


def _mail(action: EmailAction, notice: Notice) -> None:
    message = EmailMessage()
    message["Subject"] = f"[glmserve] {notice.status.upper()}: {notice.rule.name}"
    message["From"] = action.sender
    message["To"] = ", ".join(action.to)
    lines = [f"{key}: {value}" for key, value in notice.fields().items() if key != "text" and value != ""]
    message.set_content("\n".join([notice.text, "", *lines]) + "\n")
    with _connection(action) as smtp:
        if action.tls == "starttls":
            smtp.starttls(context=ssl.create_default_context())  # smtplib by itself would trust anybody
        if action.user:
            smtp.login(action.user, _password(action))
        smtp.send_message(message)


def _connection(action: EmailAction) -> smtplib.SMTP:
    if action.tls == "tls":
        return smtplib.SMTP_SSL(action.host, action.port, timeout=action.timeout, context=ssl.create_default_context())
    return smtplib.SMTP(action.host, action.port, timeout=action.timeout)


def _password(action: EmailAction) -> str:
    """Read anew each time, so that it can be changed while the server runs."""
    return action.password_file.read_text(encoding="utf-8").strip() if action.password_file else action.password or ""


def _run(action: CommandAction, notice: Notice) -> None:
    arguments = [str(_filled(part, notice)) for part in action.command]
    done = subprocess.run(arguments, input=json.dumps(notice.fields()), text=True, capture_output=True, timeout=action.timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} exited with {done.returncode}: {done.stderr.strip()[-200:]}")


def _filled(part: Any, notice: Notice) -> Any:
    """`part` of a body with its placeholders replaced."""
    if isinstance(part, str):
        return part.format(**notice.fields())
    if isinstance(part, dict):
        return {key: _filled(value, notice) for key, value in part.items()}
    return [_filled(value, notice) for value in part] if isinstance(part, list) else part
