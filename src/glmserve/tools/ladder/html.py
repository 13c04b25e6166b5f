"""The ladder as one page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

from html import escape

from glmserve.tools.ladder.charts import Bar, Panel, panels
from glmserve.tools.ladder.results import Ladder
from glmserve.tools.ladder.table import COLUMNS, cells, facts, notes, summary

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #66707f; --page: #f6f7f9; --card: #fff; --line: #e3e7ee; --track: #eceff4;
  --bar: #2f6fdb; --mark: #12305f }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --soft: #98a2b3; --page: #12161c; --card: #1b212a; --line: #2b3340;
  --track: #262e3a; --bar: #5b93f5; --mark: #fff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.25rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; text-wrap: balance }
h2 { font-size: 1rem; margin: 0 }
p { margin: .3rem 0 }
.soft { color: var(--soft); font-size: .87rem }
code { font: .85em ui-monospace, "SF Mono", Consolas, monospace; overflow-wrap: anywhere }
.sums { margin: 1.2rem 0; font-size: 1.05rem }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); gap: 1rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem 1.2rem }
.row { display: grid; grid-template-columns: 10.2rem 1fr 8.6rem; gap: 0 .8rem; align-items: center; margin-top: .5rem }
.row span { font-size: .87rem }
.row b { font-weight: 400; font-size: .82rem; color: var(--soft); font-variant-numeric: tabular-nums }
.track { position: relative; height: .95rem; border-radius: .25rem; background: var(--track) }
.bar { height: 100%; border-radius: .25rem; background: var(--bar) }
.mark { position: absolute; top: -.15rem; bottom: -.15rem; width: 3px; margin-left: -2px; background: var(--mark) }
.wide { overflow-x: auto; margin-top: 1rem }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums }
th, td { padding: .45rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 500 }
th:first-child, td:first-child, th:last-child, td:last-child, td.missing { text-align: left }
td.missing { color: var(--soft); white-space: normal }
tr:last-child td { border-bottom: 0 }
@media (max-width: 34rem) { .row { grid-template-columns: 1fr auto } .track { grid-column: 1 / 3; grid-row: 2 } }
"""


def html(ladder: Ladder) -> str:
    """The whole page."""
    title = f"{ladder.model} on {ladder.device or 'an unknown device'}"
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            f"<title>Ladder: {escape(title)}</title><style>{STYLE}</style></head><body>",
            f'<h1>{escape(title)}</h1><p class="soft">{_with_code(facts(ladder))}</p>',
            '<div class="sums">',
            *(f"<p>{escape(line)}</p>" for line in summary(ladder)),
            '</div><div class="panels">',
            *(_panel(panel) for panel in panels(ladder)),
            '</div><section class="wide">',
            _table(ladder),
            "</section>",
            *(f'<p class="soft">{escape(line)}</p>' for line in notes(ladder)),
            "</body></html>\n",
        )
    )


def _panel(panel: Panel) -> str:
    bars = "".join(_bar(bar) for bar in panel.bars)
    return f'<section><h2>{escape(panel.title)}</h2><p class="soft">{escape(panel.hint)}</p>{bars}</section>'


def _bar(bar: Bar) -> str:
    mark = "" if bar.mark is None else f'<div class="mark" style="left:{bar.mark:.2%}"></div>'
    drawn = f'<div class="track"><div class="bar" style="width:{bar.length:.2%}"></div>{mark}</div>'
    return f'<div class="row"><span>{escape(bar.label)}</span>{drawn}<b>{escape(bar.text)}</b></div>'


def _table(ladder: Ladder) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    lines = []
    for row in ladder.rows:
        name, *middle, article = map(escape, cells(row))
        if row.figures is None:
            inner = f'<td class="missing" colspan="{len(middle)}">{middle[0]}</td>'
        else:
            inner = "".join(f"<td>{cell}</td>" for cell in middle)
        lines.append(f"<tr><td>{name}</td>{inner}<td>{article}</td></tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _with_code(text: str) -> str:
    before, tick, rest = escape(text).partition("`")
    code, _, after = rest.partition("`")
    return f"{before}<code>{code}</code>{after}" if tick else before
