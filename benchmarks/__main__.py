"""`python -m benchmarks NAME ... KEY=VALUE ...`, with the names below; without one, the four that have targets.

Keys are the parameters of `main` in the modules of the names, whole numbers or text. The table of targets comes last.
"""

from __future__ import annotations

import importlib
import inspect
import os
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.table import Report, Target, table
from mlrun.train.machine import processor

NAMES = (
    "startup", "loop", "levels", "growth", "operators", "receipts",
    "streaming", "sharding", "coordinates", "predictions", "loss", "muon", "gpu", "images", "text",
)  # fmt: skip
QUICK = NAMES[:4]
LIBRARIES = ("torch", "transformers", "accelerate", "numpy")


def main(arguments: list[str]) -> int:
    """Print each report, then all targets beside what was measured; 2 if a name is unknown."""
    names = [word for word in arguments if "=" not in word]
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"benchmarks: {unknown[0]}: allowed: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    before, targets = load(), list[Target]()
    for name in names or QUICK:
        run = importlib.import_module(f"benchmarks.{name}").main
        found = run(**typed(run, given))
        report = found if isinstance(found, Report) else Report(found)
        targets += report.targets
        print(f"## {name}\n\n{report.text}\n", flush=True)
    if targets:
        rows = [target.row for target in targets]
        print(f"## targets\n\n{table(['what', 'target', 'measured', 'held'], rows)}\n\n{where(before)}")
    return 0


def typed(run: Callable[..., Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return what the command line gives to `run`: numbers where its annotations say int, else the text."""
    kinds = inspect.get_annotations(run, eval_str=True)
    rest = next((p.name for p in inspect.signature(run).parameters.values() if p.kind is p.VAR_KEYWORD), "")
    return {key: int(value) if kinds.get(key, kinds.get(rest)) is int else value for key, value in given.items()}


def load() -> str:
    """Return how many processes wanted a core in the last minute, n/a where no one counts them."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "n/a"


def where(before: str) -> str:
    """Return the machine, what else it did, and the versions."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in LIBRARIES)]
    machine = f"{os.cpu_count()} cores of {processor()}"
    return f"{machine}; load {before} before, {load()} at the end (1 is ours). {', '.join(versions)}."


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "n/a"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
