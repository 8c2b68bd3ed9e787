"""Which items of a sequence are held out: a share of them, evenly spread, whatever they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

Part = Literal["train", "validation"]
Item = TypeVar("Item")


def held_out(index: int, fraction: float) -> bool:
    """Say whether item `index` is held out: as evenly spread over the sequence as the fraction allows."""
    return int((index + 1) * fraction) > int(index * fraction)


def select(items: Iterable[Item], part: Part, fraction: float) -> Iterator[Item]:
    """Yield the items that belong to a part; fraction 0 leaves all of them in training."""
    wanted = part == "validation"
    return (item for index, item in enumerate(items) if held_out(index, fraction) == wanted)
