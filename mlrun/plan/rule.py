"""When to grow: the rule by which a stage of length `auto` ends, a pure function of the held-out losses so far.

A grown model joins the course of one that was large from the start within a mixing time that hardly depends on when
it grew (arXiv 2511.04981). At equal FLOPs more cheap tokens then are better, as long as decay and mixing time
remain: the plan has that latest end. What speaks for growing earlier is a level that no longer learns for want of
size, and that its own curve shows. Both gains below are for the same FLOPs, those of going on to the latest end:

here    at most what going on gains: the slope of the loss over the logarithm of the tokens, at the last looks, taken
        two standard errors steeper, so that a noisy curve ends no stage
next    what the next level gains in the tokens that these FLOPs buy there, if it learns at the steepest slope that
        this level ever had: a level is taken to be as good as the next one until its size holds it back

The stage ends early once `here` is below a share (`cycle.auto.early`) of `next`. No clock, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

# Looks that a slope is fitted to.
WINDOW = 4
# Standard errors by which a slope may be steeper than it looks.
DOUBT = 2.0


class Look(NamedTuple):
    """A held-out loss after so many batches of training, all levels together, without probes that were not kept."""

    batches: int
    loss: float


@dataclass(frozen=True)
class Course:
    """Where a stage may still go: its latest end in batches, and what its step costs over one of the next level."""

    latest: int
    cost: float


@dataclass(frozen=True)
class Verdict:
    """Whether to grow now, why, and the numbers that it follows from; None where there is none."""

    grow: bool
    reason: str
    slope: float | None = None  # nats per e-fold of tokens, over the last looks
    slope_error: float | None = None
    steepest: float | None = None
    gain_here: float | None = None  # nats, for the FLOPs up to the latest end
    gain_next: float | None = None

    def numbers(self) -> dict[str, float]:
        """Return the numbers that there are, by name."""
        return {k: v for k, v in asdict(self).items() if k not in ("grow", "reason") and v is not None}


def decide(looks: Sequence[Look], course: Course, early: float) -> Verdict:
    """Return what to do after the last of `looks`, the oldest first; there is at least one."""
    now = looks[-1].batches
    if now >= course.latest:
        return Verdict(True, "the latest end: decay and mixing time need the rest")
    recent = looks[-WINDOW:]
    if len(recent) < WINDOW:
        return Verdict(False, f"a slope needs {WINDOW} looks, and this is number {len(looks)}")
    if not all(math.isfinite(look.loss) for look in recent):
        return Verdict(False, "a loss that is not finite says nothing about growing")
    slope, error = fitted(recent)
    windows = (looks[i : i + WINDOW] for i in range(len(looks) - WINDOW + 1))
    steepest = max(fitted(w)[0] for w in windows if all(math.isfinite(look.loss) for look in w))
    here = (slope + DOUBT * error) * math.log(course.latest / now)
    there = max(steepest, 0.0) * math.log1p(course.cost * (course.latest - now) / now)
    grow = early > 0 and here < early * there
    told = f"going on to the latest end gains at most {here:.4f} nats"
    beside = f"{early:g} of the {there:.4f} that the next level is taken to gain for the same FLOPs"
    return Verdict(grow, f"{told}, {'less' if grow else 'no less'} than {beside}", slope, error, steepest, here, there)


def fitted(looks: Sequence[Look]) -> tuple[float, float]:
    """Return by how many nats the loss falls per e-fold of batches, by least squares, and its standard error."""
    xs = [math.log(look.batches) for look in looks]
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(look.loss for look in looks) / len(looks)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    rise = math.fsum((x - mean_x) * (look.loss - mean_y) for x, look in zip(xs, looks, strict=True)) / spread
    left = math.fsum((look.loss - mean_y - rise * (x - mean_x)) ** 2 for x, look in zip(xs, looks, strict=True))
    return -rise, math.sqrt(left / (len(looks) - 2) / spread)
