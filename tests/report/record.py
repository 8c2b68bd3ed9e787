"""Records tiny real runs for the report's tests: `python tests/report/record.py` writes `recorded/` anew.

The tests edit copies of these files, so that no key and no record stands in them that no run writes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RECORDED = Path(__file__).parent / "recorded"
FILES = ("config.yaml", "plan.json", "log.jsonl", "summary.json")
# Half a minute on one core: every cycle with and without an ending at half of the budget.
COMMAND = [
    "-m", "cycle=scratch,2level,grow", "cycle.branches=[],[50%]", "run=runs", "cache=cache", "model=gpt_micro",
    "model.vocab=300", "model.embed=32", "model.head=2", "model.head_dim=16", "model.ffn=64", "model.layer=2",
    "data.sequence=16", "data.validation_samples=16", "batch=4", "budget=40 steps", "log_every=5", "eval.every=5%",
    "optimizer.schedule.shape=wsd", "optimizer.schedule.warmup=1 steps", "optimizer.schedule.decay=4 steps",
    "optimizer.lr=4e-3", "hardware.threads=1",
]  # fmt: skip
NAMES = ("scratch", "scratch-branch", "2level", "2level-branch", "grow", "grow-branch")


def record(recorded: Path) -> None:
    """Run all of them in a folder of their own and keep the files that the report reads."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        subprocess.run([sys.executable, "-m", "mlrun", *COMMAND], cwd=folder, env=os.environ | {"PYTHONPATH": path},
                       check=True)  # fmt: skip
        runs = sorted(Path(folder, "runs").glob("[0-9]*"))
        for name, run in zip(NAMES, runs, strict=True):
            shutil.rmtree(recorded / name, ignore_errors=True)
            (recorded / name).mkdir(parents=True)
            for file in FILES:
                shutil.copy(run / file, recorded / name / file)


if __name__ == "__main__":
    record(RECORDED)
