"""Seeds: how many, their mean, how far apart, and how sure that makes us."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
LEAST = 3  # a bootstrap over fewer values says nothing


@dataclass(frozen=True)
class Spread:
    """What several seeds say about one number; a None among the values is "not reached".

    `mean` and everything after it are None unless every seed has a value: a mean over those that reached
    would hide the ones that did not.
    """

    values: tuple[float | None, ...]
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None

    @property
    def count(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def reached(self) -> int:
        """Number of seeds that have a value."""
        return sum(value is not None for value in self.values)


def spread(values: Sequence[float | None]) -> Spread:
    """Return mean, standard deviation (n - 1) and a bootstrap interval of the mean (from three values on)."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Spread(tuple(values), None, None, None, None)
    mean = math.fsum(known) / len(known)
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(tuple(values), mean, sd, *_bootstrap(known))


def _bootstrap(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the percentile interval of the mean; the same values always give the same interval."""
    if len(values) < LEAST:
        return None, None
    draws = np.random.default_rng(0).choice(np.asarray(values), size=(RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws.mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)
