"""A real SLURM on this machine, controller and two nodes, runs our sweeps: arrays, nodes, preemption, failures.

Skipped with a reason where there is no SLURM (tests/slurm/ci.sh installs it) or where this is not root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from toy import SMALL

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
JOB = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=30", "hydra.launcher.mem_gb=1"]

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install mlrun[slurm]")
missing = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="starting slurmd needs root"),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}; see tests/slurm/ci.sh"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Return an environment in which sbatch reaches a controller of our own; it ends with the tests."""
    # A short path: sockets may have 107 characters at most.
    lab = tempfile.mkdtemp(prefix="lab-", dir="/tmp")
    port = str(21000 + os.getpid() % 400 * 100)
    own = {**os.environ, "SLURM_LAB": lab, "SLURM_LAB_PORT": port, "SLURM_LAB_HOSTS": "0"}
    started = subprocess.run([SCRIPTS / "start-slurm.sh"], env=own, capture_output=True, text=True, check=False)
    try:
        if started.returncode != 0:
            pytest.skip(f"SLURM does not start here: {started.stderr.strip()[-300:]}")
        yield {
            **own,
            "SLURM_CONF": f"{lab}/slurm.conf",
            "PATH": f"{lab}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
    finally:
        subprocess.run([SCRIPTS / "stop-slurm.sh", "--purge"], env=own, capture_output=True, check=False)


def start(env: dict[str, str], run: Path, *overrides: str, hardware: str = "slurm_cpu") -> subprocess.Popen[str]:
    launcher = JOB if hardware == "slurm_cpu" else []
    command = [sys.executable, "-m", "mlrun", f"hardware={hardware}", f"run={run}", *SMALL, *launcher, *overrides]
    return subprocess.Popen(
        command, env=env, cwd=run.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=480)
    return process.returncode, out


def wait_until(true: Callable[[], Any], seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)
    return found


def ask(env: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def steps(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text().count('"train"') if log.exists() else 0


def only_run(sweep: Path) -> Path | None:
    found = list(sweep.glob("0-*"))
    return found[0] if found else None


def job_of(sweep: Path) -> str:
    """Return the number of a sweep's only job."""
    ((job, _),) = json.loads((sweep / ".submitit/jobs.json").read_text()).values()
    return str(job)


def test_a_sweep_is_an_array_and_ends_with_the_report(cluster: dict[str, str], tmp_path: Path) -> None:
    overrides = ["cycle=scratch,2level", "optimizer.lr=1e-3,1e30", "optimizer.schedule.warmup='0 steps'"]
    process = start(cluster, tmp_path / "sweep", "-m", *overrides, "budget='20 steps'", "optimizer.clip=null")
    code, out = ended(process)
    jobs = ask(cluster, "scontrol", "-o", "show", "job").splitlines()
    assert len([j for j in jobs if "ArrayTaskId=" in j]) == 4
    runs = sorted(p for p in (tmp_path / "sweep").iterdir() if p.name[0].isdigit())
    wild = [run for run in runs if "1e_30" in run.name]
    fine = [run for run in runs if run not in wild]
    assert len(fine) == len(wild) == 2
    assert all(json.loads((run / "summary.json").read_text())["status"] == "finished" for run in fine)
    assert code == 1, out
    assert "2 of the sweep's runs failed" in out and all(str(run.name) in out.splitlines()[-1] for run in wild)
    assert (tmp_path / "sweep/report/report.md").exists()


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_nodes_give_the_losses_of_one_process(cluster: dict[str, str], tmp_path: Path, sharding: str) -> None:
    budget = ["cycle=2level", "budget='20 steps'"]
    nodes = ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=1"]
    two = start(cluster, tmp_path / "two", *budget, *nodes, f"hardware.sharding={sharding}")
    code, out = ended(two)
    assert code == 0, out
    code, out = ended(start(cluster, tmp_path / "one", *budget, hardware="cpu"))
    assert code == 0, out
    run = only_run(tmp_path / "two")
    assert run is not None
    summary = json.loads((run / "summary.json").read_text())
    assert summary["machine"].startswith("2 x CPU")
    one, both = toy.records(tmp_path / "one"), toy.records(run)
    assert [(r["kind"], r["step"]) for r in one] == [(r["kind"], r["step"]) for r in both]
    for a, b in zip(one, both, strict=True):
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)


def preempt(env: dict[str, str]) -> None:
    """More important work takes both nodes: SLURM warns our job, waits, and takes it off."""
    ask(env, "sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def run_out(env: dict[str, str]) -> None:
    """The signal that SLURM sends ahead of the limit; in a job this short submitit takes it for that."""
    (job,) = {line.strip() for line in ask(env, "squeue", "-h", "-p", "main", "-o", "%A").splitlines()}
    ask(env, "scancel", "--signal", "USR2", job)


@pytest.mark.parametrize(("interrupt", "minutes"), [(preempt, 30), (run_out, 5)])
def test_a_run_taken_off_its_node_is_requeued_and_resumes_by_itself(
    cluster: dict[str, str], tmp_path: Path, interrupt: Callable[[dict[str, str]], None], minutes: int
) -> None:
    budget = ["cycle=2level", "budget='300 steps'", "checkpoint.every='1000 steps'", "eval.every='100 steps'"]
    process = start(cluster, tmp_path / "low", *budget, f"hydra.launcher.timeout_min={minutes}")
    run = wait_until(lambda: only_run(tmp_path / "low"))
    wait_until(lambda: steps(run) > 20)
    interrupt(cluster)
    code, out = ended(process)
    assert code == 0, out
    job = job_of(tmp_path / "low")
    assert "Restarts=1" in ask(cluster, "scontrol", "-o", "show", "job", job)
    code, out = ended(start(cluster, tmp_path / "calm", *budget, hardware="cpu"))
    assert code == 0, out
    assert toy.records(run) == toy.records(tmp_path / "calm")


def test_a_run_that_meets_its_time_limit_is_requeued_and_ends_like_one_without(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """The limit is SLURM's shortest, a minute. SLURM looks every 30 s which jobs are near theirs.

    A signal 10 s ahead therefore comes 20 s to 50 s after the start: when our process listens, and before 52 s of
    training are over. A machine that is too slow for a step in that time is only requeued once more.
    """
    slow = ["data._target_=slow.Slow", "cycle=2level", "budget='200 steps'", "checkpoint.every='10000 steps'"]
    slow += ["eval.every='100 steps'"]
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10"]
    env = {**cluster, "MLRUN_PACKAGES": "slow", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = start({**env, "PAUSE": "0.25"}, tmp_path / "short", *slow, *limit)
    code, out = ended(start({**env, "PAUSE": "0"}, tmp_path / "calm", *slow, hardware="cpu"))
    assert code == 0, out
    code, out = ended(process)
    assert code == 0, out
    run = only_run(tmp_path / "short")
    assert run is not None and toy.records(run) == toy.records(tmp_path / "calm")
    job = job_of(tmp_path / "short")
    shown = ask(cluster, "scontrol", "-o", "show", "job", job)
    assert "TimeLimit=00:01:00" in shown and "Restarts=0" not in shown
    logs = "".join(path.read_text() for path in (tmp_path / "short/.submitit").rglob("*.err"))
    assert "DUE TO JOB REQUEUE" in logs and "DUE TO TIME LIMIT" not in logs


def test_a_killed_job_is_named_and_the_others_go_on(cluster: dict[str, str], tmp_path: Path) -> None:
    # At a pace, so that it is still training when it is killed.
    env = {**cluster, "MLRUN_PACKAGES": "slow", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PAUSE": "0.05"}
    slow = ["data._target_=slow.Slow", "cycle=scratch", "budget='300 steps'"]
    process = start(env, tmp_path / "sweep", "-m", "seed=0,1", *slow)
    victim = wait_until(lambda: list((tmp_path / "sweep").glob("1-*")))[0]
    wait_until(lambda: steps(victim) > 5)
    task = next(
        line.split()[0] for line in ask(cluster, "squeue", "-h", "-r", "-o", "%i %T").splitlines() if "_1 " in line
    )
    ask(cluster, "scancel", "--signal", "KILL", task)
    code, out = ended(process)
    assert code == 1, out
    assert f"1 of the sweep's runs failed: {victim.relative_to(tmp_path)}" in out
    other = only_run(tmp_path / "sweep")
    assert other is not None
    assert json.loads((other / "summary.json").read_text())["status"] == "finished"
    assert "SLURM job" in (victim / "error.txt").read_text()


def other_sbatch(cluster: dict[str, str], folder: Path, then: str) -> dict[str, str]:
    """Return an environment in which sbatch does something between taking the jobs and telling their number."""
    wrapper = folder / "other" / "sbatch"
    wrapper.parent.mkdir()
    real = shutil.which("sbatch", path=cluster["PATH"])
    wrapper.write_text(f'#!/bin/sh\nout=$({real} "$@") || exit 1\n{then}\necho "$out"\n')
    wrapper.chmod(0o755)
    return {**cluster, "PATH": f"{wrapper.parent}:{cluster['PATH']}"}


def test_jobs_that_begin_before_sbatch_answers_are_none_the_worse(cluster: dict[str, str], tmp_path: Path) -> None:
    env = other_sbatch(cluster, tmp_path, "sleep 6")
    code, out = ended(start(env, tmp_path / "sweep", "-m", "seed=0,1", "cycle=scratch", "budget='5 steps'"))
    assert code == 0, out
    done = [json.loads(path.read_text())["status"] for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert done == ["finished", "finished"]


def test_the_same_command_finds_its_jobs_in_the_queue_and_waits(cluster: dict[str, str], tmp_path: Path) -> None:
    """The first command is gone, its jobs are not; the second adds a seed, which is the only one to be submitted."""
    env = {**cluster, "MLRUN_PACKAGES": "slow", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PAUSE": "0.05"}
    slow = ["data._target_=slow.Slow", "cycle=scratch", "budget='300 steps'"]
    first = start(env, tmp_path / "sweep", "-m", "seed=0,1", *slow)
    wait_until(lambda: min(map(steps, (tmp_path / "sweep").glob("[01]-*")), default=0) > 3)
    first.kill()
    first.communicate()
    code, out = ended(start(env, tmp_path / "sweep", "-m", "seed=0,1,2", *slow))
    assert code == 0, out
    assert "2 of 3 runs are in the queue since an earlier command" in out and "1 runs are SLURM job" in out
    runs = sorted(path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    assert [run.name for run in runs] == ["0-seed=0", "1-seed=1", "2-seed=2"]
    assert not list((tmp_path / "sweep").glob("*/error.txt"))
    for run in runs:
        assert steps(run) == 300 and json.loads((run / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_jobs_whose_number_nobody_was_told_are_found_by_their_mark(
    cluster: dict[str, str], tmp_path: Path, seeds: str
) -> None:
    """The first command is killed when SLURM has its jobs and sbatch has not answered."""
    comment = "+hydra.launcher.additional_parameters.comment=mine"
    given = ["-m", f"seed={seeds}", "cycle=scratch", "budget='5 steps'", comment]
    killed = other_sbatch(cluster, tmp_path, "kill -9 $PPID")
    code, out = ended(start(killed, tmp_path / "sweep", *given))
    assert code == -9, out
    queued = set(ask(cluster, "squeue", "-h", "-r", "-o", "%i").split())
    code, out = ended(start(cluster, tmp_path / "sweep", *given))
    assert code == 0, out
    count = seeds.count(",") + 1
    assert f"{count} of {count} runs are in the queue since an earlier command" in out
    done = [json.loads(path.read_text())["status"] for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert done == ["finished"] * count
    jobs = {job for job, _ in json.loads((tmp_path / "sweep/.submitit/jobs.json").read_text()).values()}
    assert jobs == queued and len(queued) == count
    assert [len(toy.starts(path)) for path in (tmp_path / "sweep").glob("[01]-*")] == [1] * count
