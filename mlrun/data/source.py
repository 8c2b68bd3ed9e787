"""What a spec opens: batches by sample index, and a fixed held-out set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]


class Source(Protocol):
    """Open data. Samples are numbered from 0 over all epochs; a sample's content depends on (seed, number) only."""

    @property
    def samples(self) -> int | None:
        """Return the samples in one epoch; None when the stream's length is unknown."""

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Yield the batches of samples start..start+size-1, start+size.., without end.

        `rows` keeps these rows of each batch (a process's share) and spares the work for the others; the kept
        rows are the same as without it.
        """

    def validation(self, size: int) -> Iterator[Batch]:
        """Yield the held-out set in batches of `size`, the last one smaller; identical at every call."""

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts: what the data is, its content hash, how much there is of it."""
