"""The page's files as the server gives them, and what holds for all of them.  No browser is needed here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from glmserve.engine.fake import FakeOptions
from glmserve.observe import slow
from glmserve.protocol.messages import FinishReason
from glmserve.server.routes.web import FOLDER
from tests.server.serving import MODEL, ServerInThread
from tests.web.conftest import Start

SCRIPTS = sorted(FOLDER.glob("scripts/**/*.js"))
INDEX = (FOLDER / "index.html").read_text(encoding="utf-8")


def test_the_page_comes_with_a_strict_policy(server: ServerInThread) -> None:
    page = server.http.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"


def test_files_are_checked_at_each_load_and_sent_once(server: ServerInThread) -> None:
    first = server.http.get("/web/scripts/main.js")
    assert first.headers["content-type"].startswith("text/javascript") and first.headers["cache-control"] == "no-cache"
    again = server.http.get("/web/scripts/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert server.http.head("/").status_code == 200
    assert server.metric("http_requests_total", path="/web/{path:path}", status="304") >= 1


@pytest.mark.parametrize("path", ["/web/missing.js", "/web/../app.py", "/web/%2e%2e/server/app.py", "/web/scripts", "/web//etc/passwd"])
def test_nothing_but_the_pages_files(server: ServerInThread, path: str) -> None:
    assert server.http.get(path).status_code == 404


def test_what_the_page_is_told_of_the_model(server: ServerInThread) -> None:
    about = server.http.get("/web/page.json").json()
    assert about["model"] == MODEL and about["defaults"] == {"temperature": 0.95, "top_p": 0.7}
    assert {"zh", "en"} == set(about["suggestions"]) and about["suggestions"]["zh"][0]["text"]


def test_the_page_needs_no_key_and_the_api_does(start_server: Start) -> None:
    server = start_server(FakeOptions(), server={"api_key": ("secret",)})
    assert [server.http.get(path).status_code for path in ("/", "/web/page.json", "/web/scripts/main.js")] == [200, 200, 200]
    assert server.http.post("/", json={"prompt": "x"}).status_code == 401
    assert server.http.post("/web/page.json").status_code == 401
    assert server.http.get("/v1/models").status_code == 401


def test_no_web_serves_no_page(start_server: Start) -> None:
    server = start_server(FakeOptions(), server={"web": False})
    assert server.http.get("/web/page.json").status_code == 404
    without_page: httpx.Response = server.http.get("/")
    assert without_page.status_code == 405 and "<html" not in without_page.text
    assert server.http.post("/", json={"prompt": "x", "max_length": 8}).status_code == 200


def test_every_module_is_loaded_with_the_page() -> None:
    preloaded = re.findall(r'rel="modulepreload" href="web/([^"]+)"', INDEX)
    entries = {"scripts/main.js", "scripts/early_theme.js"}
    assert sorted(preloaded) == sorted(str(path.relative_to(FOLDER)) for path in SCRIPTS if str(path.relative_to(FOLDER)) not in entries)


def test_nothing_comes_from_elsewhere_and_no_markup_is_made_of_text() -> None:
    for path in [*SCRIPTS, *FOLDER.glob("styles/*.css"), FOLDER / "index.html"]:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""["'(]\s*(https?:)?//\w""", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text), path
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", INDEX)


def test_every_cause_has_a_word() -> None:
    """A cause that `observe.slow` makes up newly shall not stand there without one."""
    causes = set(re.findall(r'(?:Part\([^"]*|Reason\()"(\w+)"', Path(slow.__file__).read_text(encoding="utf-8"))) | {"deadline", "failed"}
    assert len(causes) > 10
    assert {f"cause_{cause}" for cause in causes} == {key for key in _words("en") if key.startswith("cause_")}
    assert set(_words("zh", "reasons")) == causes - {"deadline", "failed"}  # these two carry the error's own words


def test_every_way_to_end_has_a_word() -> None:
    assert {f"done_{reason.value}" for reason in FinishReason} == {key for key in _words("en") if key.startswith("done_")}


def test_both_languages_say_the_same_things() -> None:
    words = {name: _words(name) for name in ("en", "zh")}
    assert list(words["en"]) == list(words["zh"])
    holes = {name: {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in said.items()} for name, said in words.items()}
    assert holes["en"] == holes["zh"]
    source = INDEX + "".join(path.read_text(encoding="utf-8") for path in SCRIPTS if path.parent.name != "words")
    composed = (
        "cause_",
        "done_",
        "heard_",
        "theme_",
        "state_",
        "server_",
        "stopped_by_you",
        "broke_off",
        "page_closed",
    )  # named by a state
    unused = [key for key in words["en"] if not key.startswith(composed) and not re.search(rf'["\s{{]{key}[":]', source)]
    assert unused == []
    said = re.findall(r'say\("(\w+)"', source) + re.findall(r'data-say(?:-label|-placeholder)?="(\w+)"', INDEX)
    assert [key for key in said if key not in words["en"]] == []


def _words(language: str, name: str = "words") -> dict[str, str]:
    text = (FOLDER / "scripts" / "words" / f"{language}.js").read_text(encoding="utf-8")
    text = text.split(f"export const {name} = {{\n")[1].split("\n};")[0]
    return {key: json.loads(value) for key, value in re.findall(r'^  (\w+): ("(?:[^"\\]|\\.)*"),$', text, re.MULTILINE)}
