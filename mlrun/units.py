"""Lengths with a unit: `5%`, `1500 steps`, `20M tokens`, `64k samples`, `3e18 flops`, `rest`. No bare numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# An example of each unit.
EXAMPLES = {
    "%": "5%",
    "steps": "1500 steps",
    "tokens": "20M tokens",
    "samples": "64k samples",
    "flops": "3e18 flops",
    "rest": "rest",
}
UNITS = tuple(unit for unit in EXAMPLES if unit != "rest")
_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
_LENGTH = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([kMBGTPEZ]?)\s*(%|[a-z]+)\s*")


@dataclass(frozen=True)
class Length:
    """A non-negative amount of one of `UNITS`, or `rest`: what the budget's FLOPs leave over."""

    amount: float
    unit: str


REST = Length(0.0, "rest")


def parse(text: object) -> Length | None:
    """Return the length that `text` names, or None if it is not one (a unit missing, an unknown unit)."""
    if text == "rest":
        return REST
    found = _LENGTH.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    number, prefix, unit = found.groups()
    unit = unit if unit in UNITS else unit + "s"
    amount = float(number) * _PREFIX[prefix]
    if unit not in UNITS or (unit == "%" and prefix) or not math.isfinite(amount):
        return None
    return Length(amount, unit)


@dataclass(frozen=True)
class Rates:
    """What one optimizer step spends, and how many steps make the whole that `%` refers to."""

    samples: int
    tokens: int
    flops: int
    whole: float

    def steps(self, length: Length) -> int:
        """Return the length in whole steps, rounded to the nearest; `rest` is not a length of its own."""
        assert length.unit != "rest"
        per_unit = {
            "%": self.whole / 100,
            "steps": 1.0,
            "tokens": 1 / self.tokens,
            "samples": 1 / self.samples,
            "flops": 1 / self.flops,
        }
        return round(length.amount * per_unit[length.unit])


def human(number: float) -> str:
    """Return a count in three or four significant digits with a prefix: 124439808 -> '124M', 3.2e18 -> '3.20E'."""
    for prefix in ("Z", "E", "P", "T", "G", "M", "k"):
        # What rounds to one of a unit is written in it: 1M, not 1e+03k.
        if abs(number) >= 0.9995 * _PREFIX[prefix]:
            return f"{number / _PREFIX[prefix]:.3g}{prefix}"
    return f"{number:.3g}"


def flops(number: float) -> str:
    """Return a budget in FLOPs as settings have it, in six significant digits: 423993802752 -> '423.994G flops'."""
    prefix = next((name for name in reversed(_PREFIX) if name != "B" and number >= _PREFIX[name]), "")
    return f"{number / _PREFIX[prefix]:.6g}{prefix} flops"


def duration(seconds: float | None) -> str:
    """Return a time in the largest unit that leaves at least one: 2.5 h, 12 min, 3.1 s; n/a if it is not known."""
    if seconds is None:
        return "n/a"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"
