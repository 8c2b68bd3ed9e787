"""What a run writes into its folder as it goes: settings, plan, log, summary. The first process writes, no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mlrun import files
from mlrun.config.load import Config
from mlrun.log import jsonl, log
from mlrun.plan import begun
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan
from mlrun.train import machine, summary
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Progress


class Records:
    """The files of one run folder that tell of the run, and those who listen to its log.

    `described` says what the data is (Source.describe), as it is known when it is asked.
    """

    def __init__(self, config: Config, folder: Path, ranks: Ranks, described: Callable[[], dict[str, Any]]) -> None:
        self._config, self._folder, self._ranks, self._described = config, folder, ranks, described
        self._log: log.Log | None = None  # of the first process, once it is open

    @contextmanager
    def opened(self, plan: Plan, keep: int) -> Iterator[None]:
        """Write settings and plan, and open the log of which so many bytes are kept; close it at the end.

        Raises:
            UserError: a logger cannot start, or log.jsonl is not what the checkpoint says.
        """
        if not self._ranks.first:
            yield
            return
        settings = yaml.safe_dump(self._config.resolved, sort_keys=False)
        files.write_text(self._folder / files.CONFIG, settings)
        planned = self._write_plan(plan)
        with log.start(self._folder, self._config.logger, self._config.resolved, planned, keep=keep) as self._log:
            yield

    def _write_plan(self, plan: Plan) -> dict[str, Any]:
        """Write plan.json, which has all that is decided; return what it says."""
        own = begun.code(self._config)
        said = as_dict(plan) | {"data": self._described()} | ({begun.CODE: own} if own else {})
        files.write_json(self._folder / files.PLAN, said)
        return said

    def write(self, values: dict[str, Any]) -> None:
        """Write one record of the log."""
        if self._log is not None:
            self._log.write(values)

    def tell(self, what: str, done: int, of: int | None) -> None:
        """Tell those who listen how far an evaluation or a transfer is; no record says it."""
        if self._log is not None:
            self._log.doing(what, done, of)

    def replan(self, plan: Plan) -> None:
        """Write the plan anew, as the run has decided it, and tell it those who listen."""
        if self._log is not None:
            self._log.replan(self._write_plan(plan))

    def offset(self) -> int:
        """Return the bytes of the log that are safely on disk, for a checkpoint; 0 where another process writes it."""
        return 0 if self._log is None else self._log.offset()

    def runs_on(self, keep: int) -> dict[str, Any]:
        """Return what this start, the first or a later one, runs on, for its record; say what has changed since.

        Args:
            keep: bytes of the log that are kept, with the record of the start before.
        """
        facts = machine.facts(self._ranks, self._config.settings.hardware)
        before = [found for found in jsonl.records(self._folder / files.LOG, keep) if found["kind"] == "start"]
        if changed := machine.changed(before[-1], facts) if before else []:
            self._ranks.say(f"goes on otherwise than before ({'; '.join(changed)}): last digits may differ")
        return {**facts, "overrides": self._config.overrides}

    def leave(self, status: str, reason: str) -> None:
        """Say in summary.json why the run ended before its time."""
        if self._ranks.first:
            said = {"status": status, "reason": reason, "val_loss": summary.last_val(self._folder / files.LOG)}
            files.write_json(self._folder / files.SUMMARY, said)

    def finish(self, plan: Plan, progress: Progress, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Write summary.json of a run that came to its end, and tell it those who listen; return what it says.

        Args:
            seconds: of the run, by purpose.
        """
        said = summary.finished(plan, progress, seconds, self._folder / files.LOG)
        said |= {"data": self._described(), "machine": machine.words(self._ranks)}
        if self._log is not None:
            files.write_json(self._folder / files.SUMMARY, said)
            self._log.finish(said)
        return said
