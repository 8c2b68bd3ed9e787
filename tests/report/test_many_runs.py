"""Grids of hundreds of runs: checked before anything starts, and reported quickly in little memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import fake_runs as fake
import pytest

from mlrun.cli import command, points, preflight

GRID = [
    "-m", "run=unused", "seed=range(5)", "cycle=scratch,2level", "coarsening.width=1,2", "coarsening.depth=1,2,4",
    "optimizer.lr=3e-4,1e-3,3e-3", "optimizer.weight_decay=0,0.05,0.1",
]  # fmt: skip
REPORT = """
import pathlib, resource, sys
from mlrun.report.build import build
from mlrun.report.read import find
build(find([pathlib.Path(sys.argv[1])]), pathlib.Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_grid_of_540_runs_is_checked_whole() -> None:
    began = time.process_time()
    grid = points.of(command.read(GRID))
    assert len(grid) == len({point.folder for point in grid}) == 540
    preflight.check(grid)
    assert time.process_time() - began < 40


@pytest.mark.slow
def test_a_report_over_500_runs_takes_seconds_and_little_memory(tmp_path: Path) -> None:
    """Less than 20 s; and ten times the runs need less than a quarter megabyte for each one more."""
    methods = (("scratch", fake.SCRATCH, 1e-3), ("scratch", fake.SCRATCH, 2e-3), ("2level", fake.TWO, 1e-3),
               ("2level", fake.TWO, 2e-3), ("grow", fake.GROW, 2e-3))  # fmt: skip
    memory = {}
    for seeds in (10, 100):
        for seed in range(seeds):
            for name, stages, lr in methods:
                fake.run(tmp_path / f"{seeds}" / f"{name}-{lr}-{seed}", name, stages, seed, lr)
        command = [sys.executable, "-c", REPORT, str(tmp_path / f"{seeds}"), str(tmp_path / f"report-{seeds}")]
        began = time.perf_counter()
        memory[seeds] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert time.perf_counter() - began < 20
    assert (memory[100] - memory[10]) / 1024 / 450 < 0.25
