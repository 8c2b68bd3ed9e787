"""A corpus: documents in a fixed order, of which some are held out whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar

Part = Literal["train", "validation"]
Item = TypeVar("Item")


class Corpus(Protocol):
    """Where documents come from."""

    def facts(self) -> dict[str, Any]:
        """Return the JSON-able content hash of everything that `documents` depends on."""

    def documents(self, part: Part) -> Iterator[str]:
        """Yield the texts of one part, reading as it goes."""


def held_out(index: int, fraction: float) -> bool:
    """Say whether document `index` is held out: as evenly spread over the corpus as the fraction allows."""
    return int((index + 1) * fraction) > int(index * fraction)


def select(items: Iterable[Item], part: Part, fraction: float) -> Iterator[Item]:
    """Yield the items that belong to a part; fraction 0 leaves all of them in training."""
    wanted = part == "validation"
    return (item for index, item in enumerate(items) if held_out(index, fraction) == wanted)
