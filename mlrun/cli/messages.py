"""What is printed, by which process, and with which exit code a command ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from mlrun import files
from mlrun.errors import InUse, UserError
from mlrun.train.parallel import environment

IN_USE = 75  # sysexits.h: try again later


class Failed(Exception):
    """A run came to an end that is nobody's mistake, told in one line."""


class Ended(BaseException):
    """A signal asks the command to end, as KeyboardInterrupt does; what is not whole goes on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


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


class _Lasting:
    """An output stream that nobody has to read: what can no longer be written is dropped, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as far as somebody reads; log.jsonl has what a run says anyway."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _lasting(number: int, stream: TextIO | None) -> TextIO:
    """Return the stream of a file's number, None if Python found it closed, as one that lasts."""
    found = open(number, "w", closefd=False) if stream is None else stream  # noqa: SIM115
    return cast(TextIO, _Lasting(found))


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Let the work go on without standard output or error: `mlrun | head -1`, `mlrun >&-`, a full disk behind them."""
    for number in (0, 1, 2):  # a closed number would be given to the next file that is opened, and printed into
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(1, sys.stdout), _lasting(2, sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn a disk that is full or forbidden into a UserError, whatever was written."""
    try:
        yield
    except OSError as error:
        if not files.full_or_forbidden(error):
            raise
        raise UserError(files.reason(error, Path()) or str(error)) from error


def common(error: Exception) -> bool:
    """Return whether all processes of the run raise an error."""
    return isinstance(error, UserError) and error.common


@contextlib.contextmanager
def user_errors(everywhere: bool = False) -> Iterator[None]:
    """Turn mistakes and full disks into lines and exit code 2 (75: another process has the folder), failed runs into 1.

    What all processes find is printed by one; `everywhere` is for what a single one may find.
    """
    try:
        with disk_errors():
            yield
    except (UserError, Failed) as error:
        for line in str(error).splitlines() if (everywhere and not common(error)) or first() else ():
            print_error(f"mlrun: {line}")
        code = IN_USE if isinstance(error, InUse) else 2 if isinstance(error, UserError) else 1
        raise SystemExit(code) from None
