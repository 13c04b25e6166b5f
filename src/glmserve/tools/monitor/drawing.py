"""Bars, trails and stacks out of characters, as wide as the place they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

STEPS = "▁▂▃▄▅▆▇█"
COLORS = {
    "prefill": "#3b82f6",
    "decode": "#22c55e",
    "sampling": "#06b6d4",
    "idle_no_work": "#6b7280",
    "idle_draining": "#9ca3af",
    "idle_scheduling": "#eab308",
    "idle_tokenizing": "#f97316",
    "idle_http": "#d946ef",
    "idle_kv_full": "#ef4444",
}
OTHER_COLOR = "#a3a3a3"  # of an activity that is new to this page


def color_of(activity: str) -> str:
    """The colour that stands for an activity everywhere."""
    return COLORS.get(activity, OTHER_COLOR)


def in_order(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    """Activities as they are stacked: work first, then rest, then what is new to this page."""
    known = [name for name in COLORS if name in shares]
    return [(name, shares[name]) for name in [*known, *sorted(set(shares) - set(COLORS))]]


def cells(shares: Sequence[float], width: int) -> list[int]:
    """How many of `width` cells each share gets; they sum to `width` where the shares sum to 1."""
    ends = [round(width * min(1.0, end)) for end in accumulate(shares)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


class StackedBar:
    """One line, divided by shares."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._parts = in_order(shares)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A block of colour a part."""
        widths = cells([share for _, share in self._parts], options.max_width)
        for (name, _), width in zip(self._parts, widths, strict=True):
            yield Segment("█" * width, Style.parse(color_of(name)))
        yield Segment.line()


class SharesOverTime:
    """A stack a column, the newest on the right; `rows` characters high, each two steps."""

    def __init__(self, trail: Sequence[Mapping[str, float]], rows: int) -> None:
        self._trail = trail
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Half blocks: the upper half is the foreground, the lower the background."""
        columns = [self._column(shares) for shares in self._trail[-options.max_width :]]
        for row in range(self._rows):
            yield Segment(" " * (options.max_width - len(columns)))
            for column in columns:
                yield Segment("▀", Style(color=column[2 * row], bgcolor=column[2 * row + 1])) if column else Segment(" ")
            yield Segment.line()

    def _column(self, shares: Mapping[str, float]) -> list[str]:
        """Colours from top to bottom, rest above, work below; none where nothing is known."""
        parts = in_order(shares)
        counts = cells([share for _, share in parts], 2 * self._rows)
        colors = [color_of(name) for (name, _), count in zip(parts, counts, strict=True) for _ in range(count)]
        colors += colors[-1:] * (2 * self._rows - len(colors))
        return colors[::-1]


def share_bar(share: float, width: int, color: str = "#22c55e") -> Text:
    """A bar that is `share` full."""
    full = round(width * min(1.0, max(0.0, share)))
    return Text.assemble(("█" * full, color), ("░" * (width - full), "dim"))


def trail_line(values: Sequence[float | None], width: int, color: str = "#22c55e") -> Text:
    """The last values, as high as they are against the highest of them; a gap where nothing is known."""
    shown = values[-width:]
    top = max((value for value in shown if value is not None), default=0.0)
    line = "".join(" " if value is None else STEPS[round((len(STEPS) - 1) * value / top)] if top else STEPS[0] for value in shown)
    return Text(line, color)
