"""The run folder: whose it is, and whether it can be written. Reads only; no torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mlrun.config import ARGUMENTS
from mlrun.errors import mistake

# What may differ when a run is resumed: speed, names and what is told to whom, but nothing that moves the loss.
RUNTIME = (
    "task",
    "run",
    *ARGUMENTS,
    "name",
    "log_every",
    "cache",
    "hardware",
    "logger",
    "checkpoint",
    "eval.batch",
)
# What a folder may hold without being anybody's run.
HARMLESS = ("plan.json", "error.txt")


def problems(folder: Path, resolved: Mapping[str, Any]) -> list[str]:
    """Return why a configuration cannot run in a folder, one line at most; `resolved` is all of its settings."""
    if not writable(folder):
        return [mistake("run", folder, "a folder that can be written", "choose another run=...")]
    if not folder.exists():
        return []
    config = folder / "config.yaml"
    if config.exists():
        return _other_config(folder, config, resolved)
    others = sorted(p.name for p in folder.iterdir() if p.name not in HARMLESS and not p.name.startswith("."))
    if others:
        allowed = "a new or empty folder, or one that mlrun began"
        return [mistake("run", folder, allowed, f"it holds {others[0]} but no config.yaml; choose another run=...")]
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


def _other_config(folder: Path, config: Path, resolved: Mapping[str, Any]) -> list[str]:
    try:
        there = yaml.safe_load(config.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        there = None
    if not isinstance(there, dict):
        return [mistake("run", folder, "a folder of this configuration", "its config.yaml is broken; choose another")]
    if differing := differences(there, resolved):
        allowed = "a new folder, or the configuration that it was begun with"
        return [mistake("run", folder, allowed, f"choose another run=..., or undo: {'; '.join(differing)}")]
    return []


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return `key (there A, here B)` for each setting that a resumed run must share and does not."""
    old, new = dict(_leaves(there)), dict(_leaves(here))
    return [
        f"{key} (there {old.get(key, 'absent')}, here {new.get(key, 'absent')})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == r or key.startswith(f"{r}.") for r in RUNTIME)
    ]


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value); lists are values."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
