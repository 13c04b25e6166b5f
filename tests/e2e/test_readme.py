"""The examples of the README, run as they stand; only the address is that of the test's server."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from glmserve.config import EngineConfig, ServerConfig, flag_name
from glmserve.server.routes import chatglm, openai, operations, scale, websocket
from tests.conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
CHINESE = (PROJECT / "README.zh-CN.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)  # fences without a language are for reading only


def title(code: str) -> str:
    return re.sub(r"\W+", "-", code)[:50].strip("-")


@pytest.mark.parametrize(("language", "code"), EXAMPLES, ids=[title(code) for _, code in EXAMPLES])
def test_example_runs(language: str, code: str, demo_server: str) -> None:
    code = code.replace("localhost:8000", demo_server.removeprefix("http://"))
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip()) >= 10
    assert "error" not in result.stdout


def test_there_is_an_example_of_each_kind() -> None:
    text = "".join(code for _, code in EXAMPLES)
    for kind in (
        "/v1/chat/completions",
        "from openai import",
        "-X POST http://localhost:8000 ",
        "/chat ",
        "/ws/chat",
        "from glmserve import LLM",
    ):
        assert kind in text


def test_every_flag_and_default_in_the_readme_is_true() -> None:
    fields = {flag_name(name): field for kind in (EngineConfig, ServerConfig) for name, field in kind.model_fields.items()}
    table = README.split("## Main flags")[1].split("\n## ")[0]
    for row in re.findall(r"^\| (`--.*?) \| (.*?) \| ", table, re.MULTILINE):
        flags, defaults = re.findall(r"--[a-z-]+", row[0]), row[1].split(", ")
        if flags == ["--config"]:
            continue
        for flag, default in zip(flags, defaults if len(defaults) == len(flags) else defaults * len(flags), strict=True):
            value = fields[flag].default
            assert value in (None, ()) or (f"{value:g}" if isinstance(value, float) else str(value)) == default, flag


def test_every_endpoint_in_the_readme_exists_and_no_other() -> None:
    table = README.split("## Endpoints")[1].split("\n## ")[0]
    named = set(
        re.findall(r"`(?:[A-Z]+ )?(/[a-z0-9/_]*)`", "\n".join(row.split("|")[1] for row in re.findall(r"^\| `.*", table, re.MULTILINE)))
    )
    assert named == served_paths()


def served_paths() -> set[str]:
    paths = {route.path for module in (openai, chatglm, operations, scale, websocket) for route in module.router.routes}  # type: ignore[attr-defined]
    return (paths | {"/docs"}) - {"/v1/models/{name:path}"}


def code_blocks(text: str) -> list[str]:
    """Of a README, without comments: those are in its own language."""
    return [re.sub(r"[ ]+# .*$", "", code, flags=re.MULTILINE) for code in re.findall(r"```\w*\n.*?```", text, re.DOTALL)]


def table_facts(text: str) -> list[tuple[list[str], list[str]]]:
    """Of each row of a table: the code and the numbers in it, in an order that no language changes."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [(sorted(re.findall(r"`[^`]+`", row)), sorted(re.findall(r"\d[\d,.]*\d|\d", row))) for row in rows]


def test_the_chinese_readme_has_the_same_commands_figures_and_dates() -> None:
    assert code_blocks(CHINESE) == code_blocks(README)
    assert table_facts(CHINESE) == table_facts(README)
    for fact in (r"^#+ ", r"\d{4}-\d\d-\d\d", r"\b[0-9a-f]{7}\b", r"!\[.*?\]\((.*?)\)"):
        assert len(re.findall(fact, CHINESE, re.MULTILINE)) == len(re.findall(fact, README, re.MULTILINE)), fact
    dates = r"\d{4}-\d\d-\d\d|\b[0-9a-f]{7}\b"
    assert re.findall(dates, CHINESE) == re.findall(dates, README)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", *(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md"))])
def test_every_link_leads_to_a_file(name: str) -> None:
    page = PROJECT / name
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
