"""A sweep side by side on this machine: the same losses, failures alone, stopped as one and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import SMALL

from hydra_plugins.mlrun_launchers.local import ENDING, LocalLauncher, Run, Started
from mlrun.cli.capacity import Share, shares, spin_briefly
from mlrun.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
PAIR = ["hydra/launcher=local", "hydra.launcher.runs_at_a_time=2"]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlrun", "-m", *SMALL, *overrides]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # Where the tests run in the background, interrupts are ignored, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip


def sweep(folder: Path, *overrides: str) -> tuple[int, str]:
    process = start(folder, *overrides)
    out, _ = process.communicate(timeout=480)
    return process.returncode, out


def losses(run: Path) -> list[tuple[str, float]]:
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(r["kind"], r["loss"]) for r in records if "loss" in r]


def test_a_sweep_side_by_side_is_the_sweep_one_by_one(tmp_path: Path) -> None:
    grid = ["budget=6 steps", "cycle=scratch,2level", "name='a name: with = signs'"]
    code, out = sweep(tmp_path, *grid, *PAIR, "run=beside")
    assert code == 0 and "4/4" not in out and "2/2" in out and "-- report of beside" in out
    assert sweep(tmp_path, *grid, "run=alone")[0] == 0
    names = [path.parent.name for path in sorted(tmp_path.glob("alone/*/summary.json"))]
    assert len(names) == 2
    for name in names:
        assert losses(tmp_path / "beside" / name) == losses(tmp_path / "alone" / name) != []
        assert "held-out loss" in (tmp_path / "beside" / ".console" / f"{name}.txt").read_text()


def test_several_processes_per_run(tmp_path: Path) -> None:
    code, out = sweep(tmp_path, *PAIR, "hydra.launcher.processes_per_run=2", "budget=3 steps", "seed=0", "run=s")
    assert code == 0, out
    assert json.loads((tmp_path / "s/0-run/summary.json").read_text())["machine"].startswith("2 x CPU")


def test_a_run_that_fails_is_named_and_the_others_end(tmp_path: Path) -> None:
    """That the first file is too short shows only in the run that reads it."""
    (tmp_path / "good.txt").write_text("so many words and still no end in sight\n\n" * 400)
    (tmp_path / "bad.txt").write_text("few\n")
    data = ["data=text", "data.files=[bad.txt],[good.txt]", "data.sequence=16", "cache=cache"]
    code, out = sweep(tmp_path, *PAIR, *data, "budget=3 steps", "cycle=scratch", "run=s")
    assert code == 1, out
    assert "1 of the sweep's runs failed: s/0-" in out
    (note,) = tmp_path.glob("s/*/error.txt")
    assert note.read_text().startswith("mlrun: ") and note.parent.name.startswith("0-")
    assert len(list(tmp_path.glob("s/*/summary.json"))) == 1
    assert sweep(tmp_path, *PAIR, *data[:1], "data.files=[good.txt]", *data[2:], "budget=3 steps", "run=t")[0] == 0


def test_a_run_that_dies_without_a_word_is_noted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    started = Started(Run(command, tmp_path / "run", tmp_path / ".console" / "run.txt"), Share({}))
    started.process.wait()
    told = "mlrun: it ended with signal SIGKILL and printed nothing"
    assert started.outcome() == told and (tmp_path / "run/error.txt").read_text() == f"{told}\n"


def interrupted(folder: Path, grid: list[str], number: signal.Signals, beyond: list[int]) -> list[int]:
    """Start a sweep, stop it once both of its runs are beyond a step, and return the steps in their logs."""

    def steps() -> list[int]:
        logs = sorted(folder.glob("s/*/log.jsonl"))
        whole = [log.read_text().rpartition("\n")[0].splitlines() for log in logs]  # a line may be under way
        kinds = [[r for r in map(json.loads, lines) if r["kind"] == "train"] for lines in whole]
        return [records[-1]["step"] for records in kinds if records]

    process = start(folder, *PAIR, *grid)
    deadline = time.monotonic() + 120
    while len(now := steps()) < 2 or any(a <= b for a, b in zip(now, beyond, strict=True)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (128 + number, -number)
    return steps()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_saves_its_runs_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    grid = ["budget=4000 steps", "eval.every=2000 steps", "cycle=scratch", "seed=0,1", "run=s"]
    first = interrupted(tmp_path, grid, number, beyond=[0, 0])
    assert len(first) == 2 and max(first) < 4000
    assert len(list(tmp_path.glob("s/*/checkpoints/last*"))) == 2 and not list(tmp_path.glob("s/*/error.txt"))
    for summary in tmp_path.glob("s/*/summary.json"):
        assert json.loads(summary.read_text())["status"] == "interrupted"
    second = interrupted(tmp_path, grid, number, beyond=first)
    for log in tmp_path.glob("s/*/log.jsonl"):
        trained = [r["step"] for r in map(json.loads, log.read_text().splitlines()) if r["kind"] == "train"]
        assert trained == list(range(1, max(trained) + 1)), "it went on where it was: no step twice, none left out"
    assert all(a > b for a, b in zip(second, first, strict=True))


SLOW_TO_SAVE = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(float(sys.argv[2]))
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(600)
"""


def hurried(folder: Path, seconds: float, *numbers: signal.Signals) -> type[BaseException] | None:
    """Send signals to a sweep of one run that takes some seconds to save; return what the sweep ends by."""
    folder.mkdir()
    run = Run([sys.executable, "-c", SLOW_TO_SAVE, str(folder), str(seconds)], folder, folder / ".console" / "run.txt")

    def send() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.05)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        LocalLauncher(1, 1)._work_off([run, run], [Share({})])
    except BaseException as error:
        return type(error)
    finally:
        sender.join()
    return None


@pytest.fixture
def usual() -> Iterator[None]:
    """Give signals their usual handlers: a shell's background job, or nohup, ignores some."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_a_second_signal_takes_no_run_the_time_to_save(tmp_path: Path, number: signal.Signals) -> None:
    assert hurried(tmp_path / "run", 1.5, number, number) is SystemExit
    assert (tmp_path / "run/saved").exists() and not (tmp_path / "run/error.txt").exists()
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.usefixtures("usual")
def test_a_second_interrupt_ends_the_runs_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    assert hurried(tmp_path / "run", 60, signal.SIGINT, signal.SIGINT) is KeyboardInterrupt
    assert time.monotonic() - began < 40 and not (tmp_path / "run/saved").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("usual")
def test_a_sweep_under_nohup_goes_on_to_its_next_run(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getppid(), signal.SIGHUP)"]
    runs = [Run(command, tmp_path / name, tmp_path / ".console" / f"{name}.txt") for name in "ab"]
    LocalLauncher(1, 1)._work_off(runs, [Share({})])
    assert len(list((tmp_path / ".console").iterdir())) == 2


def test_shares_share_out_gpus_and_cores() -> None:
    eight = {"CUDA_VISIBLE_DEVICES": "4,5,6,7,GPU-a,GPU-b,2,3"}

    def gpus(at_a_time: int | None, processes: int) -> list[str]:
        return [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares(at_a_time, processes, "cuda", eight)]

    assert gpus(None, 1) == ["4", "5", "6", "7", "GPU-a", "GPU-b", "2", "3"]
    assert gpus(None, 4) == ["4,5,6,7", "GPU-a,GPU-b,2,3"]
    assert gpus(None, 3) == ["4,5,6", "7,GPU-a,GPU-b"]
    assert gpus(1, 8) == ["4,5,6,7,GPU-a,GPU-b,2,3"]
    assert gpus(3, 4) == ["4,5,6,7", "GPU-a,GPU-b,2,3", "4,5,6,7"]
    cores = len(os.sched_getaffinity(0))
    assert [share.environment for share in shares(None, 1, "cpu", {})] == [{"OMP_NUM_THREADS": "1"}] * cores
    assert [share.environment for share in shares(1, 1, "cpu", {})] == [{"OMP_NUM_THREADS": str(cores)}]
    assert [share.environment for share in shares(1, 1, "cpu", {"OMP_NUM_THREADS": "3"})] == [{"OMP_NUM_THREADS": "3"}]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0, 1, "cpu"), "hydra.launcher.runs_at_a_time=0: allowed: an integer of at least 1"),
        ((None, -1, "cpu"), "hydra.launcher.processes_per_run=-1: allowed: an integer of at least 1"),
        ((None, 3, "cuda"), "hydra.launcher.processes_per_run=3: allowed: at most 2, the GPUs that are seen"),
    ],
)
def test_shares_that_cannot_be(arguments: tuple[int | None, int, str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        shares(*arguments, {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert len(refused.value.problems) == 1 and refused.value.problems[0].startswith(told)


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": "0"}])
def test_threads_that_wait_spin_briefly_unless_the_user_chose(chosen: dict[str, str]) -> None:
    fresh: dict[str, str] = {}
    spin_briefly(fresh)
    assert fresh == {"GOMP_SPINCOUNT": "10000"}
    own = dict(chosen)
    spin_briefly(own)
    assert own == chosen
