"""Data goes one way: what plans needs no torch, what trains no Hydra, what reports neither, and nobody transformers."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlrun

PLANNING = (
    "axes",
    "units",
    "config",
    "check",
    "plan",
    "branches",
    "schedule",
    "table",
    "layers",
    "coarsening",
    "models",
)
TRAINING = ("operators", "network", "transfer", "trainer", "run", "checkpoint", "growth")
ALL = tuple(name for _, name, _ in pkgutil.iter_modules(mlrun.__path__) if name != "__main__")


def modules(parts: tuple[str, ...]) -> list[str]:
    """Return the full names of files and, in folders, of everything below."""
    found = []
    for part in parts:
        folder = Path(mlrun.__path__[0], part)
        found.append(f"mlrun.{part}")
        if folder.is_dir():
            found += [name for _, name, _ in pkgutil.walk_packages([str(folder)], f"mlrun.{part}.")]
    return found


@pytest.mark.parametrize(
    ("parts", "foreign"),
    [
        (PLANNING, ("torch", "hydra", "wandb", "datasets")),
        (TRAINING, ("hydra", "wandb", "matplotlib", "mlrun.report", "mlrun.compose", "mlrun.tasks")),
        (("report",), ("torch", "hydra", "wandb", "omegaconf")),
        (ALL, ("transformers", "lightning", "accelerate")),
    ],
    ids=("planning", "training", "report", "everything"),
)
def test_what_a_part_may_not_import_is_not_imported(parts: tuple[str, ...], foreign: tuple[str, ...]) -> None:
    """In a process of its own, in which nothing else has imported them."""
    names = modules(parts)
    assert len(names) >= len(parts)
    script = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\n"
    script += f"print([n for n in {foreign!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
