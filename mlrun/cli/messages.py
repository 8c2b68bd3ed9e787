"""What is printed, by which process, and with which exit code a command ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from mlrun.errors import UserError
from mlrun.train.parallel import environment


class Failed(Exception):
    """A run came to an end that is nobody's mistake, told in one line."""


def first() -> bool:
    """Return whether this is the one process of a run that prints and writes."""
    return environment.process().rank == 0


def print_once(text: str) -> None:
    """Print, on one process only."""
    if first():
        print(text, flush=True)


def print_error(text: str) -> None:
    """Print to standard error, on every process: what is wrong may be wrong on one alone."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def user_errors(everywhere: bool = False) -> Iterator[None]:
    """Turn the user's mistakes into lines and exit code 2, a failed run into a line and 1.

    What all processes find is printed by one; `everywhere` is for what a single one may find.
    """
    try:
        yield
    except (UserError, Failed) as error:
        for line in str(error).splitlines() if everywhere or first() else ():
            print_error(f"mlrun: {line}")
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None
