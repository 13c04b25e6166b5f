"""What the trials saw.  Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from glmserve.observe.readings import Window
from glmserve.tools.doctor.gpu import GpuSample
from glmserve.tools.doctor.reply import Reply


@dataclass
class Alone:
    """Short messages one after the other."""

    replies: list[Reply]
    samples: list[GpuSample]

    @property
    def seconds(self) -> float:
        """Median of one."""
        return median(reply.seconds for reply in self.replies)


@dataclass
class Together:
    """As many at once.  `ends` are the seconds after the first sending at which each was done, in order."""

    replies: list[Reply]
    seconds: float
    ends: list[float]


@dataclass
class BesideLong:
    """Short messages and pages while one long answer is written."""

    long: Reply
    shorts: list[Reply] = field(default_factory=list)
    pages: list[tuple[float, float]] = field(default_factory=list)  # (when asked, seconds it took)

    def remaining(self, moment: float) -> float:
        """Seconds that the long answer still took at a moment."""
        return self.long.ended - moment


@dataclass
class PageLoad:
    """Many requests of one kind, some at a time; `alone_seconds` is of one before them."""

    alone_seconds: float
    num: int
    concurrency: int
    mean_seconds: float
    worst_seconds: float
    errors: list[str]
    per_second: float

    @property
    def error_share(self) -> float:
        """Failed ones, of all."""
        return len(self.errors) / self.num


@dataclass
class Busy:
    """A spell in which short messages never ended.  `window` is /metrics from its begin to its end."""

    seconds: float
    num_done: int
    samples: list[GpuSample]
    window: Window | None
