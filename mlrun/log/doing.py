"""What goes on between two records, and how far it is: on a terminal always, in a file rarely. No record has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

RARELY = 30.0  # seconds of it between two lines of a file


def evaluating(what: str) -> str:
    """Return what is said of an evaluation."""
    return f"evaluating {what}"


def so_far(what: str, done: int, of: int | None) -> str:
    """Return `evaluating text_perplexity 12/80`; without numbers where it begins."""
    if of is None:
        return what if done == 0 else f"{what} {done}"
    return f"{what} {done}/{of}"


class Rarely:
    """Says when what goes on is worth a line of a file: after each `RARELY` seconds of it, so never if it is short."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def due(self) -> bool:
        """Return whether a line is due; called at each piece of work."""
        now = self._clock()
        if self._since is None:
            self._since = now
        if now - self._since < RARELY:
            return False
        self._since = now
        return True

    def over(self) -> None:
        """Take that it has ended."""
        self._since = None


@contextmanager
def shown(stream: TextIO) -> Iterator[Callable[[str, int, int | None], None]]:
    """Give what shows how far an evaluation is that belongs to no training: a line that goes away, or rare ones."""
    if not stream.isatty():
        long = Rarely()

        def line(what: str, done: int, of: int | None) -> None:
            if long.due():
                print(so_far(evaluating(what), done, of), file=stream, flush=True)

        yield line
        return
    from rich.console import Console

    with Console(file=stream, highlight=False, markup=False).status("evaluating") as status:
        yield lambda what, done, of: status.update(so_far(evaluating(what), done, of))
