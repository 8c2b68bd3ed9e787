"""What a run takes from the folder that `init` names: its model, its tokenizer, and what its weights cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mlrun import files
from mlrun.config.settings import Settings
from mlrun.data.text import tokenizer as tokenizers
from mlrun.errors import UserError, mistake
from mlrun.interop import ledger
from mlrun.interop import tokenizers as tokenizer_files
from mlrun.interop.published import GENERATION, IDS, Facts
from mlrun.interop.read import Checkpoint, open_folder
from mlrun.interop.tokenizers import has_one
from mlrun.interop.write import ours
from mlrun.models.base import Model
from mlrun.plan.stages import Plan
from mlrun.units import parse


@dataclass(frozen=True)
class Initial:
    """A model to start from: `tokenizer` is its file, None if none is there; `facts` as in `Checkpoint`."""

    folder: Path
    model: Model
    tokenizer: Path | None
    ledger: ledger.Ledger
    facts: Facts | None


def opened(init: str) -> Checkpoint:
    """Return the folder's tensors, names, shapes and dtypes checked; UserError if there is no such model."""
    allowed, remedy = "a model folder, ours or Hugging Face's", "correct the path, or leave it out"
    folder = files.expanded(init)
    if not init or not folder.is_dir():
        raise UserError(mistake("init", init, allowed, remedy))
    return open_folder(folder, "init")


def look(init: str) -> Initial:
    """Return what the headers and small files of the folder tell; UserError as `opened`."""
    folder = files.expanded(init).absolute()
    return _look(init, tuple((path, path.stat().st_mtime_ns) for path in sorted(folder.glob("**/*.json"))))


@cache
def _look(init: str, dates: tuple[tuple[Path, int], ...]) -> Initial:
    """Read the folder, once for all points of a sweep; `dates` of its files tell it from what it was or will be."""
    found = opened(init)
    tokenizer = tokenizers.given_files(str(found.folder)) if has_one(found.folder) else None
    return Initial(
        found.folder, found.model, None if tokenizer is None else tokenizer[0], ledger.read(found.folder), found.facts
    )


def settings_of(found: Initial) -> dict[str, Any]:
    """Return the folder's model as a choice of the group `model`."""
    return ours(found.model)


@dataclass(frozen=True)
class Carried:
    """What goes on from the folder to the model that is trained from it: special ids, and files word for word."""

    facts: Facts
    files: Mapping[str, bytes]


def carried(init: str, end: int | None) -> Carried | None:
    """Return what the folder says of generating and of its tokenizer; None if no model is there any more.

    Class names are those of the data. `end` is a token that the user chose to end documents with: what is learned is
    to end with it.
    """
    try:
        found = look(init)
    except UserError:
        return None
    said = {key: value for key, value in (found.facts or {}).items() if key in IDS}
    beside = [GENERATION] if end is None else []
    if (found.folder / tokenizer_files.OURS).is_file():
        beside += tokenizer_files.BESIDE
    read = {name: (found.folder / name).read_bytes() for name in beside if (found.folder / name).is_file()}
    return Carried(said if end is None or not said else {**said, "eos_token_id": end}, read)


def problems(init: str, model: Model, init_flops: str | None) -> list[str]:
    """Return why a run whose first stage trains `model` cannot start from the folder, a line each."""
    found = look(init)
    return [*unlike(init, found.model, model), *_declared(init, found.ledger, init_flops)]


def unlike(init: str, theirs: Model, own: Model) -> list[str]:
    """Return a line if a model has not the weights of another; what acts in training alone is each run's choice."""
    theirs, own = theirs.as_evaluated(), own.as_evaluated()
    if theirs == own:
        return []
    kind = type(theirs).__name__
    if type(theirs) is not type(own):
        remedy = f"it is a {kind}: leave model=... out, or name one"
        return [mistake("init", init, f"a {type(own).__name__}, as the first stage's model is", remedy)]
    pairs = ((f, getattr(theirs, f), getattr(own, f)) for f in asdict(own))
    differing = ", ".join(f"{f} (there {a}, here {b})" for f, a, b in pairs if a != b)
    remedy = f"its {differing} differ: leave model.* out, or set it so that the first stage has these"
    return [mistake("init", init, f"a {kind} of the first stage's sizes", remedy)]


def tokenizer_problems(init: str, given: str) -> list[str]:
    """Return a line if a given tokenizer is not the one beside the weights: their rows would mean other words."""
    beside = look(init).tokenizer
    if beside is None or _same(beside, given):
        return []
    allowed = f"the tokenizer beside the weights, {beside}"
    return [mistake("data.tokenizer", given, allowed, "leave it out: init brings its own")]


def _same(beside: Path, given: str) -> bool:
    same = files.expanded(given).resolve() in (beside.resolve(), beside.parent.resolve())
    return same or _meaning(str(beside)) == _meaning(given)


def _meaning(name: str) -> dict[str, Any]:
    """Return what decides how text becomes ids; what is put around the ids is the objective's."""
    content: dict[str, Any] = json.loads(tokenizers.load(name).to_str())
    return {key: content.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}


def charged(plan: Plan, settings: Settings, run: Path) -> Plan:
    """Return the plan with what its start cost before; a run that has begun keeps what it began with.

    What was unknown then may be declared later, once.

    Raises:
        UserError: the folder is missing or no model, or `init_flops` does not fit to it.
    """
    if settings.init is None:
        if settings.init_flops is not None:
            remedy = "it says what the model in init=... had cost"
            raise UserError(mistake("init_flops", settings.init_flops, "null without init", remedy))
        return plan
    began = _began_with(run)
    if began is None:
        return replace(plan, source=_source(settings.init, settings.init_flops))
    return replace(plan, source=_told_since(began, settings.init, settings.init_flops))


def _told_since(began: Mapping[str, Any], init: str, init_flops: str | None) -> Mapping[str, Any]:
    """Return the source that a run began with, its unknown part as `init_flops` now says."""
    parts, flops = ledger.of_source(began), _flops(init_flops)
    if began["declared"] and flops in (None, *(part.flops for part in parts if part.declared)):
        return began
    if problems := _declared(init, parts, init_flops):
        raise UserError(problems)
    return began if flops is None else ledger.source(began["name"], ledger.declared(parts, flops))


def declare(run: Path, plan: Plan, resolved: Mapping[str, Any]) -> None:
    """Write what a start had cost where a run tells it, if it was declared after the run had written it."""
    if plan.source is None or not (run / files.PLAN).is_file():
        return
    there = files.read_json(run / files.PLAN)
    if there.get("source") in (None, plan.source):
        return
    model = run / files.MODEL
    if (model / ledger.FILE).is_file() and not ledger.known(parts := ledger.read(model)):
        told = sum(part.flops or 0 for part in ledger.of_source(plan.source) if part.declared)
        ledger.write(model, ledger.declared(parts, told))
    files.write_text(run / files.CONFIG, yaml.safe_dump(dict(resolved), sort_keys=False))
    files.write_json(run / files.PLAN, there | {"source": dict(plan.source)})


def _began_with(run: Path) -> Mapping[str, Any] | None:
    """Return the source of a run that has checkpoints; None if it has yet to begin."""
    if not (run / files.CHECKPOINTS).is_dir() or not (run / files.PLAN).is_file():
        return None
    source = files.read_json(run / files.PLAN).get("source")
    try:
        if source is not None:
            ledger.of_source(source)
    except (KeyError, TypeError):
        raise UserError(f"{run / files.PLAN}: its source is not as mlrun writes it; restore the file") from None
    return source


def _source(init: str, init_flops: str | None) -> Mapping[str, Any]:
    found = look(init)
    if problems := _declared(init, found.ledger, init_flops):
        raise UserError(problems)
    flops = _flops(init_flops)
    return ledger.source(init, found.ledger if flops is None else ledger.declared(found.ledger, flops))


def _flops(init_flops: str | None) -> int | None:
    """Return the FLOPs that a setting names, None if it names none."""
    length = parse(init_flops)
    return None if length is None or length.unit != "flops" or length.amount < 1 else round(length.amount)


def _declared(init: str, known: ledger.Ledger, init_flops: str | None) -> list[str]:
    if init_flops is None:
        return []
    if _flops(init_flops) is None:
        allowed = "FLOPs above 0, such as 3e18 flops, or null"
        return [mistake("init_flops", init_flops, allowed, "say what training the model in init had cost")]
    if ledger.known(known):
        remedy = "leave it out: its ledger.json says what it cost"
        return [mistake("init_flops", init_flops, f"null with init={init}", remedy)]
    return []
