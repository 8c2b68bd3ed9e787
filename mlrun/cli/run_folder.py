"""The run folder: whose it is, and whether it can be written. Reads only; no torch here."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlrun.errors import UserError, mistake
from mlrun.files import CONFIG, ERROR, PLAN, RUNTIME, UNNAMED, judge, read_yaml

# A folder of a sweep: its number, and what was swept.
_NUMBERED = re.compile(r"(\d+)-(.*)", re.DOTALL)
# What may be said of a run that was begun without it: a fact about where it started from, which changes no step.
LATER = ("init_flops",)
# What a folder may hold without being anybody's run.
HARMLESS = (PLAN, ERROR)


def problems(folder: Path, resolved: Mapping[str, Any]) -> list[str]:
    """Return why a configuration cannot run in a folder, one line at most; `resolved` is all of its settings."""
    if lines := unwritable(folder):
        return lines
    if not folder.exists():
        return []
    config = folder / CONFIG
    if config.exists():
        return _other_config(folder, config, resolved)
    others = sorted(p.name for p in folder.iterdir() if p.name not in HARMLESS and not p.name.startswith("."))
    if others:
        allowed = "a new or empty folder, or one that mlrun began"
        return [mistake("run", folder, allowed, f"it holds {others[0]} but no config.yaml; choose another run=...")]
    return []


def unwritable(folder: Path) -> list[str]:
    """Return a line if nothing can be written into `run`."""
    if writable(folder):
        return []
    return [mistake("run", folder, "a folder that can be written", "choose another run=...")]


def foreign(folder: Path) -> list[str]:
    """Return a line if results cannot be written into `run`, or lie beside somebody else's files there."""
    if lines := unwritable(folder):
        return lines
    try:
        judge(folder)
    except UserError as error:
        return error.problems
    return []


def writable(folder: Path) -> bool:
    """Return whether the folder, or the first of its parents that exists, is a folder to write into."""
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
    except OSError:  # a name that is too long
        return False
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def short(folder: Path) -> Path:
    """Return the folder as seen from the working folder, if it is below."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def place(points: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """Return the name of the folder for each point (the folder it would have, its settings) of one sweep.

    A folder begun with the same settings is gone on with, whatever its number; one that is named alike belongs to this
    point too (`problems` says if it holds something else); the rest take their own numbers, or free ones.
    """
    sweep, wanted = points[0][0].parent, [folder.name for folder, _ in points]
    there = [p for p in sorted(sweep.iterdir()) if _NUMBERED.fullmatch(p.name)] if sweep.is_dir() else []
    if not there or not all(map(_NUMBERED.fullmatch, wanted)):
        return wanted
    begun = {path.name: _text(read(path / CONFIG) or {}) for path in there}
    names = _claimed([_text(resolved) for _, resolved in points], begun)
    labels = {name: _label(name) for name in begun if name not in names}
    alike = _claimed([None if name else _label(own) for name, own in zip(names, wanted, strict=True)], labels)
    found = [name or same for name, same in zip(names, alike, strict=True)]
    taken = {_number(name) for name in begun}
    own = {_number(name) for name, there in zip(wanted, found, strict=True) if there is None} - taken
    free = (number for number in itertools.count() if number not in taken | own)
    return [
        there or (name if _number(name) in own else f"{next(free)}-{_label(name)}")
        for name, there in zip(wanted, found, strict=True)
    ]


def _claimed(keys: Sequence[str | None], offered: Mapping[str, str]) -> list[str | None]:
    """Return for each key the name that is offered under it, each name once; None where there is none."""
    names: dict[str | None, list[str]] = {}
    for name, key in offered.items():
        names.setdefault(key, []).append(name)
    return [names[key].pop(0) if names.get(key) else None for key in keys]


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _label(name: str) -> str:
    return name.partition("-")[2]


def _text(settings: Mapping[str, Any]) -> str:
    """Return what a resumed run must share, as one text."""
    return json.dumps(dict(_lasting(settings)), sort_keys=True, default=str)


def _other_config(folder: Path, config: Path, resolved: Mapping[str, Any]) -> list[str]:
    there = read(config)
    if there is None:
        return [mistake("run", folder, "a folder of this configuration", "its config.yaml is broken; choose another")]
    if differing := differences(there, resolved):
        allowed = "a new folder, or the configuration that it was begun with"
        return [mistake("run", folder, allowed, f"choose another run=..., or undo: {'; '.join(differing)}")]
    return []


def read(config: Path) -> dict[str, Any] | None:
    """Return a config.yaml; None if there is none, or it is broken."""
    try:
        return read_yaml(config)
    except UserError:
        return None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return `key (there A, here B)` for each setting that a resumed run must share and does not."""
    old, new = dict(_lasting(there)), dict(_lasting(here))
    return [
        f"{key} (there {old.get(key, 'absent')}, here {new.get(key, 'absent')})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not (key in LATER and old.get(key) is None)
    ] + _other_precision(there, here)


def _other_precision(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the precision if it differs: of what a run computes on it alone moves the losses, and reports match by it.

    `auto` is what the run began with.
    """
    old, new = ((settings.get("hardware") or {}).get("precision") for settings in (there, here))
    differ = old != new and not {old, new} & {None, "auto"}
    return [f"hardware.precision (there {old}, here {new})"] if differ else []


def _lasting(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of what a resumed run must share; lists are values."""
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if path in RUNTIME or (path in UNNAMED and value == UNNAMED[path]):
            continue
        if isinstance(value, Mapping) and value:
            yield from _lasting(value, f"{path}.")
        else:
            yield path, value
