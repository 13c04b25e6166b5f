"""Draws loss.csv of a run: training loss as 50-step means, validation loss where it was taken.

    python -m training.loss_plot --run RUN --out docs/images/poem_training.png

Needs matplotlib.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the losses of a training run.")
    parser.add_argument("--run", type=Path, required=True, help="folder written by training.train")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    draw(arguments.run / "loss.csv", arguments.out)


def draw(losses: Path, out: Path) -> None:
    """Both curves over the tokens seen."""
    with losses.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for column, label, style in (("train_loss", "training (with dropout)", "-"), ("valid_loss", "validation", "o-")):
        points = [(int(record["tokens"]) / 1e6, float(record[column])) for record in records if record[column]]
        axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
    axes.set(xlabel="million tokens seen", ylabel="nats an answer token", ylim=(2.8, 5.0))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
