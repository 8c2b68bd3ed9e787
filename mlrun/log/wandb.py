"""Weights & Biases as a listener: one W&B run per run folder, resumed under the same id.

The library is imported when a run starts. If it breaks in the middle, training goes on and log.jsonl
has every record: `mlrun task=resend runs=RUN_FOLDER` sends them again (`mlrun.log.resend`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlrun import files
from mlrun.errors import UserError, mistake
from mlrun.log import jsonl
from mlrun.log import wandb_layout as layout
from mlrun.log.sink import AXES, Record, Sink, series

MODES = ("offline", "online", "disabled")
ID_FILE = "wandb_id"
OFFLINE_RUNS, HIDDEN_RUNS = "wandb/offline-run-*", "wandb/.offline-run-*"
# A start that gets no answer must not hold a night's queue: W&B's own limit is 90 s, and what it began may then take
# as long again to end.
START_SECONDS = "15"


@dataclass(frozen=True)
class WandbLogger:
    """`_target_` of conf/logger/wandb.yaml; the keys are described there."""

    project: str | None = None
    entity: str | None = None
    mode: str | None = None
    x: str = "flops"
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return one line per wrong setting."""
        key = "WANDB_MODE" if self.mode is None else "logger.wandb.mode"
        checks = ((key, self.chosen_mode, MODES), ("logger.wandb.x", self.x, AXES))
        return [
            mistake(key, given, ", ".join(allowed), "choose one of these")
            for key, given, allowed in checks
            if given not in allowed
        ]

    @property
    def chosen_mode(self) -> str:
        """The mode given here, else by W&B's own variable, else offline."""
        return _chosen(self.mode, "WANDB_MODE", "offline")

    def start(self, run_folder: Path, config: Record, plan: Record, keep: int) -> Sink:
        """Start or resume the W&B run of this folder.

        Offline every start makes a folder of its own. The newest takes the place of all, with the records before.

        Raises:
            UserError: a wrong setting, no library, no key, or no answer from the server.
        """
        if self.problems():
            raise UserError(self.problems())
        mode = self.chosen_mode
        if mode == "disabled":
            return Sink()
        replaced = _set_aside(run_folder) if mode == "offline" else {}
        try:
            sink = WandbSink(_init(self, mode, run_folder, config), run_folder, mode, self.x, plan)
            if mode == "offline" or keep == 0:
                sink.show(layout.tables(plan), 0)
        except Exception as error:  # W&B raises its own, requests' and the socket's errors
            _forget_service()
            for hidden, folder in replaced.items():
                hidden.rename(folder)
            raise UserError(_cannot_start(mode, error)) from error
        for hidden in replaced:
            shutil.rmtree(hidden, ignore_errors=True)
        for record in jsonl.records(run_folder / files.LOG, keep) if mode == "offline" and keep > 0 else ():
            sink.write(record)
        return sink


def _set_aside(run_folder: Path) -> dict[Path, Path]:
    """Hide the offline files of earlier starts, so that there are never two of them to upload; return where each was.

    What a killed process left hidden is among them: the log has its rows.
    """
    for folder in run_folder.glob(OFFLINE_RUNS):
        hidden = folder.with_name(f".{folder.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
    return {path: path.with_name(path.name[1:]) for path in run_folder.glob(HIDDEN_RUNS)}


Default = TypeVar("Default", str, str | None)


def _chosen(given: str | None, variable: str, default: Default) -> str | Default:
    """Return a setting, or else what W&B's own environment variable says, or else ours."""
    return given if given is not None else os.environ.get(variable) or default


def _cannot_start(mode: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    remedy = "use logger.wandb.mode=offline or logger=none, or mend it (`wandb login`, network)"
    return mistake("logger.wandb.mode", mode, f"a W&B run that starts ({reason})", remedy)


def run_id(run_folder: Path) -> str:
    """Return the W&B id of a run folder; made once, then read."""
    path = run_folder / ID_FILE
    if not path.exists() or path.stat().st_size == 0:
        files.write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def _init(spec: WandbLogger, mode: str, run_folder: Path, config: Record) -> Any:
    # Offline rows are otherwise flushed every 15 s: a killed run would leave none of its last ones.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", START_SECONDS)
    # Empty is not set, as for most programs; W&B itself would refuse to start.
    for variable in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[variable]
    import wandb

    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True)
    wandb.setup(settings=quiet)
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ConnectionError("no API key: WANDB_API_KEY is not set and `wandb login` was never run")
    return wandb.init(
        project=_chosen(spec.project, "WANDB_PROJECT", "mlrun"),
        entity=spec.entity,
        mode=mode,  # type: ignore[arg-type]
        name=_chosen(spec.name, "WANDB_NAME", layout.title(run_folder, config)),
        group=_chosen(spec.group, "WANDB_RUN_GROUP", layout.sweep(run_folder)),
        job_type=_chosen(None, "WANDB_JOB_TYPE", layout.kind(config)),
        tags=list(spec.tags) if spec.tags else None,
        id=run_id(run_folder),
        resume="allow",
        dir=run_folder,
        config=dict(config),
        settings=quiet,
    )


class WandbSink(Sink):
    """Sends records; several at one step become one row."""

    name = "W&B"

    def __init__(self, run: Any, run_folder: Path, mode: str, x: str, plan: Record) -> None:
        self._run, self._folder, self._mode, self._plan = run, run_folder, mode, plan
        self._step = 0
        layout.define(run, x)

    def show(self, tables: Iterable[tuple[str, Iterable[Record]]], step: int) -> None:
        """Show tables by name."""
        import wandb

        for name, rows in tables:
            columns, data = layout.cells(rows)
            self._run.log({name: wandb.Table(columns=columns, data=data)}, step=step)

    def replan(self, plan: Record) -> None:
        """Show the plan as it is now."""
        self._plan = plan
        self.show(layout.tables(plan), self._step)

    def write(self, record: Record) -> None:
        """Send one record."""
        self._step = record["step"]
        self._run.log(series(record) | layout.share(record, self._plan), step=self._step)

    def finish(self, summary: Record) -> None:
        """Send the final summary, whose nested keys stay nested, and the ledger as tables."""
        self.show(layout.ledger(summary), self._step)
        self._run.summary.update(dict(summary))

    def close(self, exit_code: int) -> None:
        """End the W&B run and say how to send what is not at the server."""
        self._run.finish(exit_code=exit_code)
        if self._mode == "offline":
            line = f"W&B was offline; to upload: wandb sync {shlex.quote(str(self._folder))}/{OFFLINE_RUNS}"
            print(line, file=sys.stderr, flush=True)

    def fail(self) -> str:
        """Drop the dead service; return the command that sends the log again."""
        _forget_service()
        return f"log.jsonl has all, send them: {resend_command(self._folder)}"


def _forget_service() -> None:
    """Drop a dead W&B service, so that it says nothing at exit and the next run starts its own."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def resend_command(run_folder: Path) -> str:
    """Return the shell command that sends a run's log to W&B again."""
    return f"mlrun task=resend {shlex.quote(f'runs={run_folder}')}"
