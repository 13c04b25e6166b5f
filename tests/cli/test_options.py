"""Flags made from settings reach the settings, whole."""

from __future__ import annotations

from typing import Any

import typer
from typer.testing import CliRunner

from glmserve.cli.options import with_flags_of
from glmserve.config import EngineConfig, ServerConfig


def given(*arguments: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    @with_flags_of(EngineConfig, ServerConfig, without=("model",))
    def command(**flags: Any) -> None:
        """A command."""
        seen.update(flags)

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return {name: value for name, value in seen.items() if value is not None}


def test_no_flag_gives_nothing() -> None:
    assert given() == {}


def test_values_come_as_text_for_the_settings_to_check() -> None:
    assert given("--port", "80", "--dtype", "float16") == {"port": "80", "dtype": "float16"}


def test_switches_go_both_ways() -> None:
    assert given("--enforce-eager") == {"enforce_eager": True}
    assert given("--no-enforce-eager", "--no-enable-prefix-caching") == {"enforce_eager": False, "enable_prefix_caching": False}


def test_an_option_that_may_be_repeated() -> None:
    assert given("--api-key", "a", "--api-key", "b") == {"api_key": ["a", "b"]}
