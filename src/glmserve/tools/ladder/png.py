"""The ladder as a picture, drawn by matplotlib, which is installed with `glmserve[reports]`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glmserve.protocol.errors import SettingsError
from glmserve.tools.ladder.charts import Bar, Panel, panels
from glmserve.tools.ladder.results import Ladder
from glmserve.tools.ladder.table import summary

BAR, MARK, INK, SOFT, TRACK = "#2f6fdb", "#12305f", "#1c2430", "#66707f", "#eceff4"
ROW_INCHES, PANEL_INCHES, WIDTH_INCHES = 0.34, 0.75, 10.0


def check_matplotlib() -> None:
    """Raises SettingsError where it is not installed: better before the work than after it."""
    if find_spec("matplotlib") is None:
        raise SettingsError("a .png chart needs matplotlib: `pip install glmserve[reports]`, or write .html, which needs nothing.")


def write_png(ladder: Ladder, path: Path) -> None:
    """Draw all panels under each other."""
    from matplotlib.figure import Figure  # here, since it takes half a second and few runs draw

    shown = list(panels(ladder))
    heights = [PANEL_INCHES + ROW_INCHES * len(panel.bars) for panel in shown]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 1.1), facecolor="white", layout="constrained")
    axes = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    figure.suptitle(f"{ladder.model} on {ladder.device}", x=0.02, ha="left", fontsize=15, fontweight="bold", color=INK)
    for panel, ax in zip(shown, axes, strict=True):
        _draw(panel, ax)
    figure.supxlabel("\n".join(summary(ladder)), x=0.02, ha="left", fontsize=9, color=SOFT)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.25)


def _draw(panel: Panel, ax: Any) -> None:
    places = range(len(panel.bars))
    ax.barh(places, [1.0] * len(panel.bars), height=0.62, color=TRACK)
    ax.barh(places, [bar.length for bar in panel.bars], height=0.62, color=BAR)
    for place, bar in enumerate(panel.bars):
        _label(ax, place, bar)
    ax.set_yticks(places, [bar.label for bar in panel.bars], fontsize=10, color=INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.32)  # room for the texts
    ax.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_title(panel.hint, loc="right", fontsize=8.5, color=SOFT)
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _label(ax: Any, place: int, bar: Bar) -> None:
    if bar.mark is not None:
        ax.plot([bar.mark, bar.mark], [place - 0.36, place + 0.36], color=MARK, linewidth=2.5, solid_capstyle="butt")
    ax.text(1.015, place, bar.text, va="center", fontsize=9.5, color=INK)
