"""How a figure's legend fits above its panels: in as many columns as its names leave room for, at no cost to them."""

from __future__ import annotations

from collections.abc import Sequence

# Inches of a letter at the figures' size of type, of the stroke and the space beside a name, and of a line.
LETTER, BESIDE, LINE = 0.066, 0.5, 0.17
# Lines for which a figure's height has room.
LINES = 2


def columns(names: Sequence[str], width: float) -> int:
    """Return in how many columns these names stand in a figure of so many inches: all in a line, or as many as fit."""
    inches = [BESIDE + LETTER * len(name) for name in names]
    return len(names) if sum(inches) < width else max(1, int(width / max(inches)))


def taller(count: int, columns: int) -> float:
    """Return the inches by which so many names make a figure taller, so that its panels keep their height."""
    return LINE * max(0, -(-count // columns) - LINES)
