"""An endless stream in shuffled blocks, resumable at any block. Nothing but one block is held.

Rows of an `IterableDataset` are expanded into items (windows of text, images); every `size` items make a block,
inside which the order is a pseudo-random permutation. Where a block starts in the dataset is noted in a small
JSON file, its *mark*: resuming loads the nearest earlier mark through the dataset's own `state_dict`, and
reads on from there. Without marks (another machine, an emptied cache) it reads from the beginning, with the
same result. A connection that breaks off is opened again at the rows that were read last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlrun import files
from mlrun.data import cache, counter_rng, huggingface
from mlrun.data.source import Broken
from mlrun.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

Row = dict[str, Any]
# Rows and the carry (ids of an unfinished window) become items and the new carry.
Expand = Callable[[list[Row], list[int]], tuple[list[Any], list[int]]]

_ROWS = 64  # read at once; a mark points at the first of them
# Seconds before each further attempt to open a stream that broke off; `datasets` itself has tried for minutes by then.
WAITS = (5, 20, 60)


@dataclass(frozen=True)
class Mark:
    """Where a block starts: before which rows, with what carried over, and after how many of their items."""

    block: int = 0
    epoch: int = 0
    row: int = 0
    state: dict[str, Any] | None = None
    carry: list[int] = field(default_factory=list)
    skip: int = 0


class Blocks:
    """The blocks of a stream: `load` opens it anew, `expand` is given rows with their number under `index`."""

    def __init__(self, load: Callable[[], IterableDataset], expand: Expand, size: int, folder: Path) -> None:
        self.load, self.expand, self.size, self.folder = load, expand, size, folder

    def samples(self, start: int, seed: int) -> Iterator[Any]:
        """Yield the items of samples start, start + 1, ... without end."""
        first, within = divmod(start, self.size)
        for number, items in enumerate(self._from(first), start=first):
            order = counter_rng.permute(np.arange(self.size), self.size, seed, number)
            yield from (items[position] for position in order[within:])
            within = 0

    def _from(self, first: int) -> Iterator[list[Any]]:
        """Yield the items of block `first` and of all after it, in the stream's order."""
        mark = self._nearest(first)
        number, skip, items = mark.block, mark.skip, []
        for before, new in self._chunks(mark):
            items += new[skip:]
            skip = 0
            while len(items) >= self.size:
                block, items = items[: self.size], items[self.size :]
                number += 1
                self._note(replace(before, block=number, skip=len(new) - len(items)))
                if number > first:
                    yield block

    def _chunks(self, mark: Mark) -> Iterator[tuple[Mark, list[Any]]]:
        """Yield (the place before some rows, the items that these rows complete), epoch after epoch."""
        epoch, row, state, carry = mark.epoch, mark.row, mark.state, mark.carry
        while True:
            carried, any_item = carry, False
            for rows, after in self._reads(state):
                before = Mark(epoch=epoch, row=row, state=state, carry=carry)
                numbered = [{**content, "index": row + n} for n, content in enumerate(rows)]
                items, carry = self.expand(numbered, carry)
                row, state = row + len(rows), after
                any_item |= bool(items)
                yield before, items
            if not any_item and carry == carried and mark.epoch < epoch:
                raise UserError("data: a whole epoch of the stream gives nothing to train on; correct data.sources")
            epoch, row, state = epoch + 1, 0, None

    def _reads(self, state: dict[str, Any] | None) -> Iterator[tuple[list[Row], dict[str, Any]]]:
        """Yield (some rows, the place after them) from a place to the end of the epoch; Broken if that is not to be."""
        waits = iter(WAITS)
        while True:
            try:
                with huggingface.readable("data", "the stream"):
                    dataset = self.load()
                    if state is not None:
                        dataset.load_state_dict(state)
                    stream = iter(dataset)
                    while rows := list(islice(stream, _ROWS)):
                        state, waits = dataset.state_dict(), iter(WAITS)
                        yield rows, state
                    return
            except UserError as error:
                wait = next(waits, None) if huggingface.unreachable(error.__cause__) else None
                if wait is None:
                    raise Broken(str(error)) from error
                print(f"mlrun: {error}; trying again in {wait} s", file=sys.stderr, flush=True)
                time.sleep(wait)

    def _nearest(self, block: int) -> Mark:
        """Return the last whole mark at or before a block; the beginning is one."""
        known = [int(file.stem) for file in self.folder.glob("[0-9]*.json")]
        marks = (self._mark(number) for number in sorted(known, reverse=True) if number <= block)
        return next((mark for mark in marks if mark is not None), Mark())

    def _mark(self, block: int) -> Mark | None:
        """Return the mark of a block, None if its file is damaged."""
        try:
            digest, values = loads(self._file(block).read_text())
            return Mark(**values) if digest == cache.digest(values) else None
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def _note(self, mark: Mark) -> None:
        file = self._file(mark.block)
        if file.exists():
            return
        values = asdict(mark)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # the cache may have been emptied meanwhile
            files.write_json(file, [cache.digest(values), values])
        except OSError as error:
            raise Broken(files.reason(error, self.folder) or str(error)) from error

    def _file(self, block: int) -> Path:
        return self.folder / f"{block:09d}.json"
