"""What a spec opens: batches by sample index, and a fixed held-out set. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlrun.errors import UserError, mistake

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]
Arrays = dict[str, np.ndarray]


class Broken(Exception):
    """Data that was opened can no longer be read, or gives what cannot be read; the run can be resumed."""


def same_content(before: str | None, now: str | None, who: str) -> None:
    """Raise UserError if the data is no longer what it was; `who` read it before."""
    if before != now:
        allowed = f"the data that {who} ({before})"
        raise UserError(mistake("data", now, allowed, "restore its files, or start a new folder with run=..."))


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
        """Return JSON-able facts, those of the moment when it was opened:

        content   digest of what a resumed run must find unchanged
        identity  digests of `train`, `held_out`, `tokenizer` and `preprocessing`: two runs read the same data if and
                  only if all four are equal, whatever the files are called
        notes     one-line remarks for the user
        samples, validation_samples, ...
        """

    def model_files(self) -> dict[str, str]:
        """Return what belongs beside the trained model, the text of each file by its name."""


def spread(total: int, chosen: int) -> np.ndarray:
    """Return `chosen` of `total` numbers, evenly spaced: a small held-out set still has a bit of every part."""
    return np.arange(chosen) * total // chosen


def tensors(arrays: Arrays) -> Batch:
    """Return the arrays as torch tensors."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
