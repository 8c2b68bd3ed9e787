"""Weights & Biases as a listener: one W&B run per run folder, resumed under the same id.

The library is imported when a run starts. If it breaks in the middle, training goes on and log.jsonl
has every record: `python -m mlrun.log.wandb RUN_FOLDER` sends them again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mlrun.errors import UserError, mistake
from mlrun.log.log import NoSink, Record, Sink

MODES = ("offline", "online", "disabled")
AXES = ("flops", "tokens", "step", "seconds")
POSITION = (*AXES, "flops_body", "stage", "level")  # written as they are, with every record
ID_FILE = "wandb_id"
# A start that gets no answer must not hold a night's queue; W&B itself waits a minute and a half.
START_SECONDS = "30"


@dataclass(frozen=True)
class WandbLogger:
    """`_target_` of conf/logger/wandb.yaml; the keys are described there."""

    project: str = "mlrun"
    entity: str | None = None
    mode: str = "offline"
    x: str = "flops"
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return one line per wrong setting."""
        checks = (("mode", self.mode, MODES), ("x", self.x, AXES))
        return [
            mistake(f"logger.{key}", given, ", ".join(allowed), "choose one of these")
            for key, given, allowed in checks
            if given not in allowed
        ]

    def start(self, run_folder: Path, config: Record, plan: Record, resumed: bool) -> Sink:
        """Start or resume the W&B run of this folder.

        Raises:
            UserError: a wrong setting, no library, no key, or no answer from the server.
        """
        if self.problems():
            raise UserError(self.problems())
        if self.mode == "disabled":
            return NoSink()
        try:
            run = _init(self, run_folder, config)
        except Exception as error:  # W&B raises its own, requests' and the socket's errors
            raise UserError(self._cannot_start(error)) from error
        sink = WandbSink(run, run_folder, self.mode, self.x)
        if not resumed:
            sink.plan(plan)
        return sink

    def _cannot_start(self, error: Exception) -> str:
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "use logger.mode=offline or logger=none, or mend it (`wandb login`, network)"
        return mistake("logger.mode", self.mode, f"a W&B run that starts ({reason})", remedy)


def run_id(run_folder: Path) -> str:
    """Return the W&B id of a run folder; made once, then read."""
    path = run_folder / ID_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def _init(spec: WandbLogger, run_folder: Path, config: Record) -> Any:
    # Offline rows are otherwise flushed every 15 s: a killed run would leave none of its last ones.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", START_SECONDS)
    import wandb

    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True)
    wandb.setup(settings=quiet)
    if spec.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ConnectionError("no API key: WANDB_API_KEY is not set and `wandb login` was never run")
    return wandb.init(
        project=spec.project,
        entity=spec.entity,
        mode=spec.mode,  # type: ignore[arg-type]
        name=run_folder.name if spec.name is None else spec.name,
        group=spec.group,
        tags=list(spec.tags),
        id=run_id(run_folder),
        resume="allow",
        dir=run_folder,
        config=dict(config),
        settings=quiet,
    )


class WandbSink:
    """Sends records; after the first failure it warns once and sends nothing more."""

    def __init__(self, run: Any, run_folder: Path, mode: str, x: str, stream: TextIO | None = None) -> None:
        self._run, self._folder, self._mode = run, run_folder, mode
        self._stream = sys.stderr if stream is None else stream
        self._broken = False
        self._step = 0
        self._try(self._define, x)

    def plan(self, plan: Record) -> None:
        """Show the plan as a table."""
        self._try(self._plan, plan)

    def write(self, record: Record) -> None:
        """Send one record; several at one step become one row."""
        self._try(self._write, record)

    def finish(self, summary: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Send the final summary (nested keys stay nested) and the figures that are images."""
        self._try(self._finish, summary, figures)

    def close(self, exit_code: int) -> None:
        """End the W&B run and say how to send what is not at the server."""
        self._try(self._run.finish, exit_code=exit_code)
        if self._broken:
            _forget_service()
            self._say(f"W&B misses records; log.jsonl has all, send them: {resend_command(self._folder)}")
        elif self._mode == "offline":
            self._say(f"W&B was offline; to upload: wandb sync {self._folder}/wandb/offline-run-*")

    def _try(self, action: Callable[..., object], *args: object, **kwargs: object) -> None:
        if self._broken:
            return
        try:
            action(*args, **kwargs)
        except Exception as error:  # a listener must never end the training
            self._broken = True
            reason = " ".join(str(error).split()) or type(error).__name__
            self._say(f"W&B stopped at step {self._step} ({reason}); training goes on, log.jsonl is complete")

    def _define(self, x: str) -> None:
        for axis in AXES:
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric=x)

    def _plan(self, plan: Record) -> None:
        import wandb

        rows = [{key: _cell(value) for key, value in stage.items()} for stage in plan["stages"]]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [[row.get(column) for column in columns] for row in rows]
        self._run.log({"plan": wandb.Table(columns=columns, data=data)}, step=0)

    def _write(self, record: Record) -> None:
        if record["kind"] == "start":  # no point of a curve, and W&B notes machines by itself
            return
        self._step = record["step"]
        self._run.log(row(record), step=self._step)

    def _finish(self, summary: Mapping[str, Any], figures: Sequence[Path]) -> None:
        import wandb

        images = [path for path in figures if path.suffix == ".png"]
        if images:
            pictures: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in images}
            self._run.log(pictures, step=self._step)
        self._run.summary.update(dict(summary))

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _forget_service() -> None:
    """Drop a dead W&B service, so that it says nothing at exit and the next run starts its own."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def row(record: Record) -> dict[str, Any]:
    """Return a record as W&B keys: positions as they are, the rest as `kind/name`.

    Held-out losses of coarser levels are series of their own: the last of one level and the first of the
    next stand at the same step, where one name would keep only one of them. So is everything of a branch,
    which is no part of the run's own curves: `val_branch50/loss` for the one that ends at half of the budget.
    """
    kind, level = record["kind"], record["level"]
    prefix = f"val_level{level}" if kind == "val" and level > 1 else kind
    if "branch" in record:
        prefix = f"{kind}_branch{100 * record['branch']:.4g}"
    said = {key: value for key, value in record.items() if key not in ("kind", "branch")}
    return {key if key in POSITION else f"{prefix}/{key}": value for key, value in said.items()}


def _cell(value: Any) -> Any:
    """Return a table cell: sizes and other nested values become text."""
    return json.dumps(value) if isinstance(value, dict | list) else value


def resend_command(run_folder: Path) -> str:
    """Return the shell command that sends a run's log to W&B again."""
    return f"python -m mlrun.log.wandb {run_folder}"


def resend(run_folder: Path) -> None:
    """Send every record of log.jsonl under the run's id; W&B drops the steps that it already has.

    Raises:
        UserError: the folder is no run folder with `logger=wandb`, or W&B cannot start.
    """
    import yaml

    try:
        config = yaml.safe_load((run_folder / "config.yaml").read_text())
        plan = json.loads((run_folder / "plan.json").read_text())
        settings = {key: value for key, value in config["logger"].items() if key != "_target_"}
        sink = WandbLogger(**settings).start(run_folder, config, plan, resumed=False)
    except (OSError, KeyError, TypeError) as error:
        allowed = "a run folder that was trained with logger=wandb"
        raise UserError(mistake("run folder", run_folder, allowed, f"check the path ({error})")) from error
    with open(run_folder / "log.jsonl", "rb") as lines:
        for line in lines:
            sink.write(json.loads(line))
    summary = run_folder / "summary.json"
    if summary.exists():
        sink.finish(json.loads(summary.read_text()), sorted((run_folder / "report").glob("*.png")))
    sink.close(0)


if __name__ == "__main__":
    try:
        resend(Path(sys.argv[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
