"""The first seconds of a command: help, plan, and the first step of the default with its data in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.table import Report, Target, table

# Seconds that each may take on an idle machine, and how its end is known: by a word that it prints, or by its own end.
COMMANDS = {
    "mlrun --help": (["--help"], 1.0, None),
    "mlrun task=plan": (["task=plan"], 1.5, None),
    "mlrun, first step": (["log_every=1", "eval.every=100%"], 8.0, "| loss "),
}


def once(arguments: list[str], word: str | None) -> tuple[float, float]:
    """Return the seconds until a command ends, or prints a word, and those of the processor until it ends."""
    with tempfile.TemporaryDirectory() as folder:
        run = [] if arguments == ["--help"] else [f"run={Path(folder) / 'run'}"]
        before, began = os.times(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "mlrun", *arguments, *run],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        seen = None
        for line in process.stdout:
            if word is not None and word in line:
                seen = time.perf_counter() - began
                process.terminate()
                break
        process.communicate()
        ended, after = time.perf_counter() - began, os.times()
        if word is not None and seen is None:
            raise RuntimeError(f"{arguments} ended without {word!r}")
        processor = after.children_user + after.children_system - before.children_user - before.children_system
        return ended if seen is None else seen, processor


def main(turns: int = 3) -> Report:
    """Return the table of medians; what is first in its turn warms the disk for none."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for turn in range(turns + 1):
        for name, (arguments, _, word) in COMMANDS.items():
            measured = once(arguments, word)
            if turn > 0:
                found[name].append(measured)
    rows, targets = [], []
    for name, (_, target, _) in COMMANDS.items():
        wall, processor = (median(values) for values in zip(*found[name], strict=True))
        rows.append([name, f"{wall:.2f}", f"{target:.1f}", f"{processor:.2f}"])
        targets.append(Target(f"startup: {name}, idle", target, wall, unit=" s"))
    return Report(table(["command", "seconds", "target, idle", "processor"], rows), tuple(targets))
