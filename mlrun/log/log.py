"""Where records go. `log.jsonl` is the truth; the console and the dashboards listen, and the loop never asks who does.

A record is a flat dict with `kind` (start | train | val | health | transfer | decision | stage | micro_batch),
`stage` (from 0), `level`, and the cumulative `step`, `tokens`, `flops`, `flops_body`, `seconds` (training only), then
what it reports.
Records of a branch have `branch`, the share of the budget at which it ends; its `val` record has as `own_step`,
`own_tokens`, ... what a run with this end would have spent, while the others go on counting all that was spent.
Records of a probe have `probe`, its name. A `decision` record (`cycle=auto`) has `decided` (go on | grow | keep),
`reason`, and the numbers that it follows from.
The `val` record where a stage (as planned) or a branch ends has `results` as well: of everything that was measured
{task: {metric, value, stderr, n, version}}, as evaluate.json has it.
Every start, the first and each that resumes, has a `start` record, by which seconds may be told to be comparable:
`time` (ISO, UTC), `host`, `processor` (its model), `cores` (that this process may use), `threads` (torch's), `gpu`
(its name, or null), `precision`, `compile`, `processes`, and the versions `mlrun`, `commit` (of a checkout, `+` if
changed; else null), `torch`, `python`; and `overrides`, the words of the command that make this run again (null from
Python).
Where memory ran out a `micro_batch` record has the `samples` of one forward pass from that step on, at its level.
A `health` record (`health=true`) follows each `val` record: by layer the `gradient`, `weight` and `activation`, the
least `gain` of a norm and the largest attention `logit` (see `mlrun.train.health`); `health_flops` is what that look
itself has cost.
No torch here: numbers are Python numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from mlrun import files
from mlrun.log import jsonl
from mlrun.log.console import console
from mlrun.log.sink import Guarded, Logger, Record, Sink


class Log:
    """The truth first, then every listener, in order. Use as a context manager, or call `close`."""

    def __init__(self, truth: jsonl.Jsonl, listeners: Sequence[Sink] = ()) -> None:
        self._truth = truth
        self._listeners = tuple(Guarded(listener) for listener in listeners)

    def write(self, record: Record) -> None:
        """Write one record to every sink."""
        self._truth.write(record)
        for sink in self._listeners:
            sink.write(record)

    def offset(self) -> int:
        """Return the bytes of log.jsonl that are safely on disk; a checkpoint keeps this number."""
        return self._truth.offset()

    def replan(self, plan: Record) -> None:
        """Tell the listeners that the rest of the plan has changed."""
        for sink in self._listeners:
            sink.replan(plan)

    def doing(self, what: str, done: int, of: int | None) -> None:
        """Tell the listeners how far an evaluation or a transfer is, and the truth nothing."""
        for sink in self._listeners:
            sink.doing(what, done, of)

    def finish(self, summary: Record) -> None:
        """Give the final summary to the listeners."""
        for sink in self._listeners:
            sink.finish(summary)

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
    loggers: Mapping[str, Logger],
    config: Record,
    plan: Record,
    *,
    keep: int = 0,
    stream: TextIO | None = None,
) -> Log:
    """Open the log of one run folder.

    Args:
        loggers: what listens beside the console, by name.
        keep: bytes of log.jsonl to keep, from the checkpoint (`Log.offset`); 0 starts a new log.
        stream: where the console writes; standard output when None.

    Raises:
        UserError: a logger cannot start, or log.jsonl is not what the checkpoint says.
    """
    path = run_folder / files.LOG
    jsonl.check(path, keep)
    listeners: list[Sink] = [console(plan, sys.stdout if stream is None else stream)]
    try:
        # Before the log is cut: if a logger cannot start, the old log stays whole.
        for logger in loggers.values():
            listeners.append(logger.start(run_folder, config, plan, keep))
        return Log(jsonl.Jsonl(path, keep), listeners)
    except BaseException:
        for listener in listeners:
            listener.close(1)
        raise
