"""Grids of hundreds of runs: checked before anything starts, and reported quickly in little memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_runs as fake
import pytest

from mlrun.cli import command, points, preflight
from mlrun.config.load import load
from mlrun.errors import UserError

GRID = [
    "-m", "run=unused", "seed=range(5)", "cycle=scratch,2level", "coarsening.width=1,2", "coarsening.depth=1,2,4",
    "optimizer.lr=3e-4,1e-3,3e-3", "optimizer.weight_decay=0,0.05,0.1",
]  # fmt: skip
REFERRING = [
    "-m", "run=unused", "cycle=scratch,2level", "coarsening.width=1,2", "name='${cycle.name}','of ${model.layer}'",
    "model.layer=2,4", "data.sequence=64,'${model.position}'", "batch=8", "optimizer.schedule.floor='0.0${seed}'",
]  # fmt: skip
REPORT = """
import pathlib, resource, sys
from mlrun.report.build import build
from mlrun.report.read import find
build(find([pathlib.Path(sys.argv[1])]), pathlib.Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def seconds(work: Callable[[], object]) -> float:
    """Return what work takes of the processor."""
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.slow
def test_a_grid_of_540_runs_is_checked_whole() -> None:
    """In less than 10 ms of an idle processor each, on a busy one in a twelfth of what Hydra takes to compose one."""
    of_hydra = min(seconds(lambda: points.of(command.read(["run=unused"]))) for _ in range(3))
    grid: list[points.Point] = []
    spent = seconds(lambda: grid.extend(points.of(command.read(GRID)))) + seconds(lambda: preflight.check(grid))
    assert len(grid) == len({point.folder for point in grid}) == 540
    assert spent / 540 < max(0.010, of_hydra / 12)


def test_what_the_points_of_a_grid_share_is_read_once_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that refer to others too, and the names of folders, are those of each point taken by itself."""
    grid = points.of(command.read(REFERRING))
    shared: dict[tuple[str, str], object] = {}
    for point in grid:
        assert "optimizer" not in point.constant and "model" not in point.constant and "hardware" in point.constant
        assert load(point.settings, shared, point.constant).resolved == load(point.settings).resolved
    monkeypatch.setattr(points, "_SUBDIR", "")
    assert [point.folder for point in points.of(command.read(REFERRING))] == [point.folder for point in grid]


def test_what_is_wrong_in_all_of_a_grid_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra takes a second to say what is wrong with a value; each wrong one is named all the same."""
    loads, load_ = [], points.compose
    monkeypatch.setattr(points, "compose", lambda *how: loads.append(how) or load_(*how))
    with pytest.raises(UserError) as refused:
        points.of(command.read(["-m", "run=unused", "seed=range(5)", "model.layers=2,3", "log_every=often,1"]))
    assert len(loads) == 2 + 3  # what all share, with and without -m, and each wrong value
    named = [line.partition(": ")[0] for line in refused.value.problems]
    assert named == ["model.layers=2", "log_every=often", "model.layers=3"]


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
