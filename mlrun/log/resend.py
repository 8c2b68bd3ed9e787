"""A run's log sent to W&B once more: log.jsonl is the truth, and has each row once whatever was killed.

Offline, the newest files take the place of all that were there. Online, the run goes on under its id, and W&B drops
the steps that it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.errors import UserError, mistake
from mlrun.log.sink import Guarded
from mlrun.log.wandb import WandbLogger

READS = (files.CONFIG, files.PLAN, files.LOG)


def settings(run_folder: Path, given: WandbLogger | None) -> WandbLogger:
    """Return how a run is sent: as it was trained, but for what `given`, this command's logger, sets otherwise.

    Raises:
        UserError: the run was trained without W&B, and this command names none; or a wrong setting.
    """
    trained = (files.read_yaml(run_folder / files.CONFIG).get("logger") or {}).get("wandb")
    if trained is None and given is None:
        remedy = "give logger=wandb here, with its settings"
        raise UserError(mistake("runs", run_folder, "runs that were trained with logger=wandb", remedy))
    try:
        own = WandbLogger(**{key: _value(value) for key, value in (trained or {}).items() if key != "_target_"})
    except TypeError as error:
        remedy = f"give logger=wandb here, with its settings ({error})"
        raise UserError(mistake("runs", run_folder, "a run with the settings of this version", remedy)) from None
    plain = WandbLogger()
    names = [field.name for field in fields(WandbLogger)] if given is not None else []
    said = {name: getattr(given, name) for name in names if getattr(given, name) != getattr(plain, name)}
    found = replace(own, **said)
    if problems := found.problems():
        raise UserError(problems)
    if found.chosen_mode == "disabled":
        raise UserError(mistake("logger.wandb.mode", "disabled", "offline, online", "nothing would be sent"))
    return found


def resend(run_folder: Path, how: WandbLogger) -> tuple[int, bool]:
    """Send every whole record of log.jsonl under the run's id; return how many there are and whether all were taken.

    Raises:
        UserError: the folder is no run folder, or W&B cannot start.
    """
    config, plan = files.read_yaml(run_folder / files.CONFIG), files.read_json(run_folder / files.PLAN)
    summary = files.read_json(run_folder / files.SUMMARY) if (run_folder / files.SUMMARY).exists() else None
    sink, count = Guarded(how.start(run_folder, config, plan, 0)), 0
    for record in _whole(run_folder / files.LOG):
        sink.write(record)
        count += 1
    if summary is not None:
        sink.finish(summary)
    sink.close(0)
    return count, not sink.broken


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _whole(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log; a killed run may have left half a line at its end."""
    with open(log, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict) or "kind" not in record:
                raise UserError(f"{log}: line {number} is no record; restore the log")
            yield record
