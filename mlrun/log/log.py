"""Where records go. `log.jsonl` is the truth; the console and W&B listen, and the loop never asks who does.

A record is a flat dict with `kind` (start | train | val | transfer | stage), `stage` (from 0), `level`, and the
cumulative `step`, `tokens`, `flops`, `flops_body`, `seconds` (training only), then what it reports.
Records of a branch have `branch`, the share of the budget at which it ends; its `val` record has as `own_step`,
`own_tokens`, ... what a run with this end would have spent, while the others go on counting all that was spent.
Every start, the first and each that resumes, has a `start` record, by which seconds may be told to be comparable:
`time` (ISO, UTC), `host`, `processor` (its model), `cores` (that this process may use), `threads` (torch's), `gpu`
(its name, or null), `precision`, `processes`, and the versions `mlrun`, `commit` (of a checkout, `+` if changed; else
null), `torch`, `python`.
No torch here: numbers are Python numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from mlrun.log.console import console
from mlrun.log.jsonl import Jsonl

Record = Mapping[str, Any]


class Sink(Protocol):
    """One listener."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def finish(self, summary: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Take the summary and figures of a run that came to its end."""

    def close(self, exit_code: int) -> None:
        """Let go of everything held; exit code 0 means success."""


class NoSink:
    """Listens to nothing."""

    def write(self, record: Record) -> None:
        """Drop the record."""

    def finish(self, summary: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Drop the summary."""

    def close(self, exit_code: int) -> None:
        """Nothing is held."""


class Logger(Protocol):
    """What the `_target_` of conf/logger/*.yaml must be: settings that can start a sink."""

    def problems(self) -> list[str]:
        """Return one line per wrong setting."""

    def start(self, run_folder: Path, config: Record, plan: Record, resumed: bool) -> Sink:
        """Start listening to one run; a sink that cannot start raises UserError."""


class Log:
    """The truth first, then every listener, in order. Use as a context manager, or call `close`."""

    def __init__(self, truth: Jsonl, listeners: Sequence[Sink] = ()) -> None:
        self._truth = truth
        self._listeners = tuple(listeners)

    def write(self, record: Record) -> None:
        """Write one record to every sink."""
        self._truth.write(record)
        for sink in self._listeners:
            sink.write(record)

    def offset(self) -> int:
        """Return the bytes of log.jsonl that are safely on disk; a checkpoint keeps this number."""
        return self._truth.offset()

    def finish(self, summary: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
        """Give the final summary and figures to the listeners."""
        for sink in self._listeners:
            sink.finish(summary, figures)

    def close(self, exit_code: int = 0) -> None:
        """Close every sink, the truth first."""
        self._truth.close()
        for sink in self._listeners:
            sink.close(exit_code)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(0 if kind is None else 1)


def start(
    run_folder: Path,
    logger: Logger,
    config: Record,
    plan: Record,
    *,
    keep: int = 0,
    stream: TextIO | None = None,
) -> Log:
    """Open the log of one run folder.

    Args:
        keep: bytes of log.jsonl to keep, from the checkpoint (`Log.offset`); 0 starts a new log.
        stream: where the console writes; standard output when None.

    Raises:
        UserError: the logger cannot start, or log.jsonl is shorter than the checkpoint says.
    """
    listener = logger.start(run_folder, config, plan, keep > 0)  # first: if it cannot, the old log stays whole
    try:
        truth = Jsonl(run_folder / "log.jsonl", keep)
    except BaseException:
        listener.close(1)
        raise
    return Log(truth, [console(plan, sys.stdout if stream is None else stream), listener])
