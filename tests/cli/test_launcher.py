"""Runs as SLURM jobs, where sbatch and squeue are programs of the test: what is submitted, and what is found again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy import SMALL

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install mlrun[slurm]")
from hydra_plugins.mlrun_launchers import slurm
from mlrun.cli.messages import Failed

ROOT = Path(__file__).resolve().parents[2]


def programs(folder: Path, **scripts: str) -> str:
    """Return a PATH on which these programs come first."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_queue_is_known_by_numbers_and_by_our_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["7_0 mine mlrun-ab", "7_1 mine mlrun-ab", "8 mlrun-cd", "9 (null)", "10 a project of mlrun", "11"]
    told = programs(tmp_path / "bin", squeue="\n".join(f"echo '{line}'" for line in lines))
    monkeypatch.setenv("PATH", told)
    numbers = {"7_0", "7_1", "8", "9", "10", "11"}
    marked = {"mlrun-ab_0": "7_0", "mlrun-ab_1": "7_1", "mlrun-cd": "8"}
    assert slurm._queue() == {number: number for number in numbers} | marked
    monkeypatch.setenv("PATH", programs(tmp_path / "broken", squeue="echo no controller >&2; exit 1"))
    with pytest.raises(Failed, match="no controller: without it, runs under way would be started twice"):
        slurm._queue()


def test_a_command_killed_before_sbatch_answers_has_left_jobs_that_the_next_one_finds(tmp_path: Path) -> None:
    """SLURM has taken them; no other is submitted, and what they are to do is handed over."""
    asked, queue = tmp_path / "script", tmp_path / "queue"
    take = f'cp "$1" {asked}\nmark=$(sed -n \'s/.*--comment=//p\' "$1")\n'
    take += f'for task in 0 1; do echo "7_$task $mark"; done > {queue}\nkill -9 $PPID'
    path = programs(tmp_path / "bin", sbatch=take, squeue=f"cat {queue}", sacct="exit 1", srun="exit 1")
    small = ["scale=tiny", "cycle=scratch", "budget='5 steps'", *SMALL]
    command = [sys.executable, "-m", "mlrun", "-m", "hardware=slurm_cpu", *small, "seed=0,1", "run=sweep"]
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == -9 and "#SBATCH --comment=mlrun-" in asked.read_text(), first.stderr
    printed = tmp_path / "sweep" / ".submitit"
    assert not (printed / "7_0_submitted.pkl").exists()
    asked.unlink()
    with subprocess.Popen(command, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        said = next(line for line in second.stdout if "earlier command" in line)
        second.kill()
    assert said == "mlrun: 2 of 2 runs are in the queue since an earlier command\n" and not asked.exists()
    assert [(printed / f"7_{task}_submitted.pkl").exists() for task in (0, 1)] == [True, True]
    assert json.loads((printed / "jobs.json").read_text()) == {"0-seed=0": ["7_0", 1], "1-seed=1": ["7_1", 1]}
