"""What a run folder tells of its model, for a model card: from its files alone, unknown where they say nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.config.choices import allowed_packages, found_class
from mlrun.errors import UserError, mistake

UNKNOWN = "unknown"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SMALLER = "A smaller model alone "  # how the report begins what one does
NOT_COMPARED = "not compared: no report beside the run has it"


@dataclass(frozen=True)
class Told:
    """One run: its settings, plan and summary (empty until it has ended), its newest start, and what was measured.

    `results` are {task: {metric, value, stderr, n, version}}; `saving` is a sentence of the report that compared it.
    `declared` is the licence that a user says of data that says none.
    """

    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    summary: Mapping[str, Any]
    start: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    saving: str
    declared: str | None = None

    @property
    def trunk(self) -> list[Mapping[str, Any]]:
        """The stages that led to the weights: branches end in weights of their own, which are not kept."""
        return [stage for stage in self.plan["stages"] if "branch" not in stage]

    @property
    def data(self) -> Mapping[str, Any]:
        """What the run says of its data; empty if it says nothing."""
        return self.plan.get("data") or self.summary.get("data") or {}

    @property
    def data_class(self) -> str:
        """The name of the class that the data came through, such as `Sotu`."""
        return str(self._data.get("_target_", UNKNOWN)).rpartition(".")[2]

    @property
    def hub_sets(self) -> list[str]:
        """The data sets with a name on the hub: a file has none, nor a folder of this machine."""
        given = [one.get("path") for one in self._data.get("sources") or () if isinstance(one, Mapping)]
        named = [name for name in (*given, self._data.get("path")) if isinstance(name, str)]
        return [name for name in named if _HUB_ID.fullmatch(name) and not Path(name).exists()]

    @property
    def files(self) -> list[str]:
        """The names of the files that were read, without the folders that they lie in."""
        given = self._data.get("files") or ()
        return [Path(str(file)).name for file in ([given] if isinstance(given, str) else given)]

    @property
    def licence(self) -> str:
        """The licence of the data as its class states it; that of a user's own data is known if it was declared."""
        try:
            found = found_class(str(self._data.get("_target_")), "data._target_", allowed_packages())
        except UserError:
            found = None
        return str(getattr(found, "LICENCE", self.declared or UNKNOWN))

    @property
    def epochs(self) -> float | None:
        """Samples that the trunk's steps read over those that the data has; None if that is not known."""
        samples, read = self.data.get("samples"), [stage["samples"] for stage in self.trunk if "samples" in stage]
        return sum(read) / samples if samples and len(read) == len(self.trunk) else None

    @property
    def _data(self) -> Mapping[str, Any]:
        return self.config.get("data") or {}


def of_model(model_folder: Path) -> Told | None:
    """Return what the run says whose `model/` this is; None if no run is around it.

    Raises:
        UserError: a file of the run is damaged.
    """
    run = model_folder.absolute().parent
    if model_folder.absolute().name != files.MODEL or not all(
        (run / name).is_file() for name in (files.CONFIG, files.PLAN, files.LOG)
    ):
        return None
    summary = files.read_json(run / files.SUMMARY) if (run / files.SUMMARY).is_file() else {}
    try:
        config = files.read_yaml(run / files.CONFIG)
        start, results = _logged(run / files.LOG)
        measured = _evaluated(run, summary) if not results else results | _evaluated(run, summary)
        return Told(config, files.read_json(run / files.PLAN), summary, start, measured, _saving(run, config, summary))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{run}: not a run folder as mlrun writes it ({error!r}); restore it") from None


def declare(told: Told | None, licence: str | None) -> Told | None:
    """Return what is told with the licence that a user gives for the data, None for none.

    Raises:
        UserError: it is no id of a licence, the data says its own, or no run tells which data it was.
    """
    if licence is None:
        return told
    if told is None:
        raise UserError(mistake("data_licence", licence, "null", "no run beside the weights tells what data it is of"))
    if told.licence != UNKNOWN:
        raise UserError(mistake("data_licence", licence, "null", f"the data says it is {told.licence}: leave it out"))
    if not _LICENCE.fullmatch(licence):
        remedy = "huggingface.co/docs/hub/repositories-licenses lists them"
        raise UserError(mistake("data_licence", licence, "an id of the hub, such as cc-by-4.0 or odc-by", remedy))
    return replace(told, declared=licence)


def _logged(log: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the newest start, and the results where the trunk ended."""
    start: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for record in _records(log):
        if record["kind"] == "start":
            start = record
        elif record["kind"] == "val" and "branch" not in record and record["level"] == 1:
            results = record.get("results", {})
    return start, results


def _records(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a log that are no training steps."""
    with open(log, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n") and b'"kind": "train"' not in line[:40]:
                yield json.loads(line)


def _evaluated(run: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured later, unless its held-out loss shows that another model was measured."""
    path = run / files.EVALUATION
    found = files.read_json(path) if path.is_file() else {}
    loss, final = (found.get("held_out") or {}).get("value"), summary.get("val_loss")
    other = loss is not None and final is not None and not math.isclose(loss, final, rel_tol=1e-3)
    return {} if other else found


def _saving(run: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return what the report in the run's folder, or beside the runs of its sweep, says of it."""
    for place in (run, run.parent):
        path = place / "report" / "report.json"
        for group in files.read_json(path).get("groups", ()) if path.is_file() else ():
            if (said := _in_group(group, run.name, config, summary)) is not None:
                return said
    return NOT_COMPARED


def _in_group(group: Mapping[str, Any], name: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    """Return what one group of a report says of this run, None if it is not in it, with this very loss."""
    mine = {
        run["run"]
        for run in group["runs"]
        if Path(run["run"]).name == name
        and (run["seed"], run["val_loss"], run["status"])
        == (config.get("seed"), summary.get("val_loss"), summary.get("status"))
    }
    if not mine:
        return None
    if mine & set(group["baseline"]["runs"].values()):
        return "not compared: it is a baseline, which others are compared with"
    for row in group["methods"]:
        if any(pair["run"] in mine for pair in row["seeds"]):
            name, settled = row["method"], any(r["best"] for r in group["methods"] if r["method"] == row["method"])
            told = [line for line in group["summary"] if line.startswith((f"{name} ", f"{name}: "))]
            # What a smaller model alone does belongs to every saving: it may be the better answer.
            told += [line for line in group["summary"] if line.startswith(SMALLER)]
            return (
                " ".join(told)
                if told and (row["best"] or not settled)
                else f"{name} was better at another learning rate than this"
            )
    return "not compared: it has no matched baseline, or a better repeat"
