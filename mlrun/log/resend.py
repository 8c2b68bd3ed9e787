"""A run's log sent to W&B once more: log.jsonl is the truth, and has each row once whatever was killed.

Offline, the newest files take the place of all that were there. Online, the run goes on under its id, and W&B drops
the steps that it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.errors import UserError, mistake
from mlrun.log import wandb_layout as layout
from mlrun.log.sink import Guarded
from mlrun.log.wandb import WandbLogger

READS = (files.CONFIG, files.PLAN, files.LOG)
# What every record has, and W&B is sent by.
_NEEDED = {"kind": str, "level": int, "step": int}


def is_run(_: Path, names: Sequence[str]) -> bool:
    """Return whether a folder with files of these names is a run, whole or not: `look` says what it lacks."""
    return any(name in names for name in READS)


def look(run_folder: Path) -> None:
    """Read all that `resend` will, so that nothing is sent, and no earlier file replaced, where it would break off.

    Raises:
        UserError: a file is missing, empty or damaged.
    """
    for name in READS:
        if not (run_folder / name).is_file():
            raise UserError(
                mistake("runs", run_folder, f"runs with {', '.join(READS)}", f"it has no {name}: leave it out")
            )
    _, plan, _ = _files(run_folder)
    try:
        for _, rows in layout.tables(plan):
            layout.cells(rows)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{run_folder / files.PLAN}: no plan of ours ({type(error).__name__} {error}); restore it"
        ) from None
    if sum(1 for _ in _whole(run_folder / files.LOG)) == 0:
        raise UserError(f"{run_folder / files.LOG}: no whole record in it; restore the log, or leave the run out")


def _files(run_folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """Return config, plan, and the summary of a run that has one."""
    config, plan = files.read_yaml(run_folder / files.CONFIG), files.read_json(run_folder / files.PLAN)
    summary = run_folder / files.SUMMARY
    return config, plan, files.read_json(summary) if summary.exists() else None


def settings(run_folder: Path, given: WandbLogger | None) -> WandbLogger:
    """Return how a run is sent: as it was trained, but for what `given`, this command's logger, sets otherwise.

    Raises:
        UserError: the run was trained without W&B, and this command names none; or a wrong setting.
    """
    trained = _trained(run_folder / files.CONFIG)
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
    config, plan, summary = _files(run_folder)
    sink, count = Guarded(how.start(run_folder, config, plan, 0)), 0
    for record in _whole(run_folder / files.LOG):
        sink.write(record)
        count += 1
    if summary is not None:
        sink.finish(summary)
    sink.close(0)
    return count, not sink.broken


def _trained(config: Path) -> dict[str, Any] | None:
    """Return the settings of W&B in a run's config.yaml; None if it was trained without."""
    found = files.read_yaml(config).get("logger") or {}
    found = found.get("wandb") if isinstance(found, dict) else found
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{config}: logger holds no settings; restore the file")
    return found


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
            if not isinstance(record, dict) or any(type(record.get(key)) is not kind for key, kind in _NEEDED.items()):
                raise UserError(f"{log}: line {number} is no record; restore the log")
            yield record
