"""Seeds: how many, their mean, how far apart, and how sure that makes us. Student's t, written out: no scipy here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
LEAST = 2  # one value has no deviation
ROUNDING = 1e-9  # values that are no further apart, as a share of the largest, are the same


@dataclass(frozen=True)
class Spread:
    """What several seeds say about one number; a None among the values is "not reached".

    `mean` and everything after it are None unless every seed has a value: a mean over those that reached
    would hide the ones that did not. `low` and `high` are the 95% interval of the mean, `p` the two-sided p-value of
    a mean of 0, both by Student's t with n - 1 degrees of freedom. Where values are bounds, or all the same, there is
    no spread to judge by (costs at which a stage begins are those of the plan, whatever the seed), so no interval, and
    `p` is that of a sign test.
    """

    values: tuple[float | None, ...]
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def count(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def reached(self) -> int:
        """Number of seeds that have a value."""
        return sum(value is not None for value in self.values)


def spread(values: Sequence[float | None], bound: bool = False) -> Spread:
    """Return mean, standard deviation (n - 1), t interval of the mean and p-value; the last three from two seeds on.

    Values that are equal but for rounding have no interval. With `bound` a value is a lower bound, and only the mean is
    known: a bound is the same for every seed whose cheapest ending is there, so what they vary by is not known.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Spread(tuple(values), None, None, None, None, None)
    mean = math.fsum(known) / len(known)
    if len(known) < LEAST:
        return Spread(tuple(values), mean, None, None, None, None)
    if bound:
        return Spread(tuple(values), mean, None, None, None, by_sign(known))
    sd, freedom = statistics.stdev(known, mean), len(known) - 1
    if sd <= ROUNDING * max(map(abs, known)):
        return Spread(tuple(values), mean, sd, None, None, by_sign(known))
    error = sd / math.sqrt(len(known))
    reach = t_quantile(CONFIDENCE, freedom) * error
    p = 1 - t_inside(abs(mean) / error, freedom)
    return Spread(tuple(values), mean, sd, mean - reach, mean + reach, p)


def by_sign(values: Sequence[float]) -> float | None:
    """Return the two-sided p-value of values that are all above 0 if either sign is as likely; None of others.

    A lower bound above 0 has the sign of what it bounds.
    """
    return 2.0 ** (1 - len(values)) if min(values) > 0 else None


def t_inside(t: float, freedom: int) -> float:
    """Return the probability that |T| <= t for Student's T (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


@cache
def t_quantile(confidence: float, freedom: int) -> float:
    """Return the t within which |T| lies with this probability."""
    low, high = 0.0, 1.0
    while t_inside(high, freedom) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, freedom) < confidence else (low, middle)
    return high


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values adjusted for how many there are (Holm 1979): below 0.05 is 5% over all of them."""
    found, largest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p))
        found[name] = largest
    return found
