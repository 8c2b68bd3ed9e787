"""What `task=calibrate` says of a run beside what the run then takes: training seconds, all seconds, and peak memory.

Each run is a process of its own. On a processor its peak is that of the process, on a GPU that of torch's allocator.
Seconds need a quiet machine; bytes do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import table
from mlrun import files
from mlrun.cli import calibrated, command, device, points, tasks
from mlrun.evaluate.calibrate import calibrate
from mlrun.plan.calibration import PURPOSES, Prediction, predict

# What is calibrated, and what is then run: the same, or another size or batch of the family.
CASES = {
    "GPT": (["model=gpt_tiny"], []),
    "GPT, half the batch": (["model=gpt_tiny"], ["batch=8"]),
    "GPT, a layer less": (["model=gpt_tiny"], ["model.layer=2"]),
    "BERT": (["model=bert_tiny"], []),
    "DeiT": (["model=deit_digits", "data=digits"], []),
}
COMMON = ["recipe=none", "budget=40 steps", "eval.every=50%", "checkpoint.every=50%"]
RUN = """
import json, sys
from pathlib import Path
from mlrun.__main__ import main
sys.argv = ["mlrun", *sys.argv[2:]]
main()
import torch
peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
if not peak:
    import resource
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak = int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
Path(PEAK).write_text(str(peak))
"""
HEAD = ["run", "training", "measured", "ratio", "all", "measured", "ratio", "memory", "measured", "ratio"]


def predicted(base: Sequence[str], overrides: Sequence[str], scratch: Path) -> Prediction:
    """Calibrate one configuration, and return what follows for another of its family; nothing is kept."""
    config, _ = _planned(base)
    machine = calibrated.machine(config)
    found = calibrate(config, machine, scratch)
    config, plan = _planned(overrides)
    assert calibrated.machine(config) == machine
    return predict(plan, calibrated.habits(config, plan), found)


def _planned(overrides: Sequence[str]) -> tuple[Any, Any]:
    (point,) = points.of(command.read(overrides))
    config, plan = tasks.planned(point.settings)
    return config, device.settle(config, plan, None)


def measured(overrides: Sequence[str], folder: Path) -> tuple[dict[str, float], int]:
    """Train in a process of its own; return its seconds by purpose and its peak of bytes."""
    peak = folder.with_name(f"{folder.name}.peak")
    code = RUN.replace("PEAK", repr(str(peak)))
    said = [sys.executable, "-c", code, "--", *overrides, f"run={folder}"]
    subprocess.run(said, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    seconds = json.loads((folder / files.SUMMARY).read_text())["ledger"]["seconds"]
    return seconds, int(peak.read_text())


def row(name: str, base: Sequence[str], changes: Sequence[str], scratch: Path) -> list[str]:
    """Return prediction, measurement and their ratio of a case."""
    first, second = [*COMMON, *base], [*COMMON, *base, *changes]
    said = predicted(first, second, scratch)
    took, peak = measured(second, scratch / name.replace(" ", "_").replace(",", ""))
    pairs = [(said.total.training, took["training"]), (said.whole, sum(took[key] for key in PURPOSES))]
    cells = [cell for a, b in pairs for cell in _compared(a, b, 1, "s")]
    return [name, *cells, *_compared(said.total.bytes, peak, 1e6, "MB")]


def _compared(said: float | None, found: float, unit: float, name: str) -> list[str]:
    shown = f"{found / unit:.3g} {name}"
    return ["n/a", shown, "n/a"] if said is None else [f"{said / unit:.3g} {name}", shown, f"{said / found:.2f}"]


def main(names: Sequence[str] = tuple(CASES)) -> str:
    """Return the table."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row(name, *CASES[name], Path(scratch)) for name in names]
    return f"{table(HEAD, rows)}\n\nTargets on a quiet machine: times within 20%, memory within 15%."
