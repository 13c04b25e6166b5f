"""What answers become on the page: Markdown as its reference reads it, nothing that runs, and the same streamed as whole."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Page, expect

from glmserve.engine.fake import FakeOptions
from tests.server.serving import ServerInThread
from tests.web.conftest import Open, Start, answer_ids
from tests.web.talking import ask, wait_for_answer

pytestmark = pytest.mark.browser

SAMPLE = """# A title #

First *line*, **strong *and more* words**, ***both***, ~~gone~~, snake_case_name, 2 * 3 * 4.
Second line with `code *not em*` and a \\*star\\*.

> A quote
> of **two** lines
>
> - with a list

1. one
2. two

   more of two
   - inner *a*
   - inner b
3. three

- [plain](https://example.com/a_b_(c)) and https://example.com/x?a=1&b=2.
- second

```python
def f(x):
    return "<b>" * x  # **not strong**

```

| left | right | *mid* |
|:-----|------:|:-----:|
| a    | `b`   | c     |
| d \\| e | **f** |

---

中文**“引用”**后面,还有*斜体*。

The end"""

HOSTILE = """<script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 2"> <svg onload=window.hacked=3> <iframe src="javascript:window.hacked=4"></iframe>

[run](javascript:window.hacked=5) [run](JaVaScRiPt:window.hacked=6) [run](java\tscript:window.hacked=7) 
[run](data:text/html,<script>1</script>)

[run]( javascript:window.hacked=8) [run](<javascript:window.hacked=9>) [run](vbscript:x) [run](/relative) ![x](javascript:window.hacked=10)

![x" onerror="window.hacked=11](https://example.com/a.png) [x](https://example.com/"onmouseover="window.hacked=12)

```html"><script>window.hacked = 13</script>
<script>window.hacked = 14</script><img src=x onerror=window.hacked=15>
```

`<script>window.hacked = 16</script>` **<b onclick=window.hacked=17>bold</b>**

| <script>window.hacked=18</script> | b |
|---|---|
| <img src=x onerror=window.hacked=19> | [x](javascript:1) |

<style>body { display: none }</style><base href="https://example.com/"><meta http-equiv=refresh content="0;url=https://example.com">
"""


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest, server: ServerInThread) -> Iterator[Page]:
    context = request.getfixturevalue("browser").new_context()
    page = context.new_page()
    page.goto(server.url)
    yield page
    context.close()


def _whole(page: Page, text: str) -> str:
    """The page's HTML for a text."""
    return str(_streamed(page, [text])["html"])


def _streamed(page: Page, pieces: list[str]) -> dict[str, Any]:
    """The HTML after the pieces came one by one, each drawn; and how many nodes were made for it."""
    result: dict[str, Any] = page.evaluate(
        """async pieces => {
            const { StreamedMarkdown } = await import("/web/scripts/markdown/streamed.js");
            const container = document.createElement("div");
            const shown = new StreamedMarkdown(container);
            let made = 0;
            const count = records => { for (const record of records) made += record.addedNodes.length; };
            new MutationObserver(count).observe(container, { childList: true });
            for (const piece of pieces) { shown.append(piece); shown.finish(); }
            for (let more = 0; more < 6; more++) shown.finish();  // a flood is drawn in parts
            await new Promise(resolve => setTimeout(resolve));
            return { html: container.innerHTML, made };
        }""",
        pieces,
    )
    return result


def _skeleton(html: str) -> str:
    """The same whichever of two renderers made it: tags without attributes but href, no white space between blocks."""
    html = re.sub(
        r'<figure.*?</figcaption><pre>(.*?)</pre></figure>|<div class="table">(.*?)</div>',
        lambda m: f"<pre>{m[1]}</pre>" if m[1] else m[2],
        html,
        flags=re.S,
    )
    html = re.sub(r"<(\w+)((?: [^<>]*)?)>", lambda m: f"<{m[1]}{''.join(re.findall(r' href=.[^ >]*', m[2]))}>", html)
    html = re.sub(r"\s*(</?(?:p|h\d|ul|ol|li|blockquote|table|thead|tbody|tr|th|td|pre|hr|br)>)\s*", r"\1", html)
    html = re.sub(r"\n+</code></pre>", "</code></pre>", html)
    html = re.sub(
        r"<li><p>((?:(?!</?p>|</li>).)*)</p></li>", r"<li>\1</li>", html
    )  # an item of one paragraph stands close here, gaps or not
    return html.replace("<s>", "<del>").replace("</s>", "</del>").replace("&quot;", '"')


def test_markdown_reads_as_its_reference_does(page: Page) -> None:
    reference = MarkdownIt("commonmark", {"breaks": True}).enable(["table", "strikethrough"])
    text = SAMPLE.replace("https://example.com/x?a=1&b=2", "<https://example.com/x?a=1&b=2>").replace("中文**“引用”**后面,", "中文")
    wanted = _skeleton(reference.render(text).replace("em><strong>both</strong></em", "strong><em>both</em></strong"))
    ours = _skeleton(_whole(page, text.replace("<https://example.com/x?a=1&b=2>", "https://example.com/x?a=1&b=2")))
    assert ours == wanted


def test_emphasis_beside_chinese_punctuation(page: Page) -> None:
    assert _whole(page, "中文**“引用”**后面") == "<p>中文<strong>“引用”</strong>后面</p>"  # CommonMark leaves the stars standing


@pytest.mark.parametrize(
    "text",
    [
        "**open",
        "`open",
        "[open](",
        "***",
        "* ",
        "> ",
        "```",
        "|a|\n|-",
        "1.",
        "- - - x",
        "\\",
        "**" * 3000,
        "[" * 3000,
        "> " * 3000,
        "`" * 99,
    ],
)
def test_unfinished_and_odd_text_loses_nothing(page: Page, text: str) -> None:
    html = _whole(page, f"before\n\n{text}\n\nafter")
    assert html.startswith("<p>before</p>") and ("after" in html)


def test_streamed_in_any_pieces_it_ends_as_the_whole(page: Page) -> None:
    for seed, text in enumerate(
        [SAMPLE, HOSTILE, "para\n***bold***\n\n- a\n\n2. b\n\n- c\n\n\n    d\n```x```\nend", SAMPLE + "\n\n" + SAMPLE]
    ):
        whole = _whole(page, text)
        for longest in (1, 7, 60):
            random_lengths = random.Random(seed * 100 + longest)
            pieces, at = [], 0
            while at < len(text):
                length = random_lengths.randint(1, longest)
                pieces.append(text[at : at + length])
                at += length
            assert _streamed(page, pieces)["html"] == whole


def test_settled_blocks_are_not_made_again(page: Page) -> None:
    paragraphs = [f"Paragraph {number} with **some** words.\n\n" for number in range(200)]
    assert _streamed(page, paragraphs)["made"] <= 2 * len(paragraphs)  # each at most once more, when the next one began
    code = ["```python\n", *(f"x = {number}\n" for number in range(300))]
    assert _streamed(page, code)["made"] <= 3  # a program grows in place


def test_nothing_in_an_answer_runs(page: Page) -> None:
    for html in (_whole(page, HOSTILE), _streamed(page, [HOSTILE[i : i + 3] for i in range(0, len(HOSTILE), 3)])["html"]):
        tags = set(re.findall(r"<(\w+)", html))
        assert tags <= {
            "p",
            "a",
            "br",
            "strong",
            "code",
            "pre",
            "figure",
            "figcaption",
            "span",
            "button",
            "svg",
            "use",
            "div",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        }
        attributes = set(re.findall(r" ([\w-]+)=\"", re.sub(r">[^<]*<", "><", html)))
        assert attributes <= {"class", "href", "target", "rel", "type", "aria-label", "title", "aria-hidden", "data-language", "style"} - {
            "style"
        }
        links = re.findall(r'<a href="([^"]*)"', html)
        assert links and all(link.startswith("https://example.com") for link in links)


def test_a_hostile_model_does_no_harm_in_the_chat(open_page: Open, start_server: Start) -> None:
    text = HOSTILE[:560]
    server = start_server(FakeOptions(alphabet=answer_ids(text)), engine={"max_model_len": 512})
    page = open_page(server)
    ask(page, "<img src=x onerror=window.hacked=20>")
    answer = wait_for_answer(page)
    expect(answer).to_contain_text("<script>window.hacked = 1</script>")
    expect(page.locator(".message.user .message-text")).to_have_text("<img src=x onerror=window.hacked=20>")
    page.reload()  # and from the archive, and as a title
    expect(answer).to_contain_text("window.hacked = 1")
    assert page.evaluate("window.hacked") is None
    assert page.locator(".message script, .message img, .message iframe, .message svg:not([aria-hidden])").count() == 0


def test_even_our_own_code_could_not_make_markup_of_text(page: Page) -> None:
    refused = """() => {
        try { document.createElement("div").innerHTML = "<b>x</b>"; return "made"; } catch (error) { return error.name; }
    }"""
    assert page.evaluate(refused) == "TypeError"  # the policy's trusted types
