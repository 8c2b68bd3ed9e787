"""A share of things that came out right, with how sure it is."""

from __future__ import annotations

import math

from mlrun.evaluate.base import Result

# The normal distribution's, for 95%.
Z = 1.959963984540054


def proportion(metric: str, share: float, n: int, version: int) -> Result:
    """Return a share of `n` independent things, with its standard error and its interval."""
    return Result(metric, share, math.sqrt(share * (1 - share) / n), n, version, wilson(share, n))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95% score interval (Wilson 1927): it stays in [0, 1], and has a width where all or none are right."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
