"""The learning rate of a run that knows its minutes: a short rise, then a cosine down to zero at the end of the time."""

from __future__ import annotations

import math

WARM_UP = 0.03  # share of the time
FLOOR = 0.01  # of the peak, where it ends


def learning_rate(peak: float, progress: float) -> float:
    """`progress` is the share of the time that is over, 0 to 1; beyond 1 it stays at its end."""
    if progress < WARM_UP:
        return peak * (0.01 + 0.99 * progress / WARM_UP)
    falling = min(1.0, (progress - WARM_UP) / (1 - WARM_UP))
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * falling)))
