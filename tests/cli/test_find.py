"""Looking for the best settings: the space, what a sweeper is told, a killed search that goes on, and its report."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from optuna.storages.journal import JournalFileBackend
from toy import SMALL

from hydra_plugins.mlrun_launchers.jobs import Job
from hydra_plugins.mlrun_sweepers import optuna as optuna_sweeper
from hydra_plugins.mlrun_sweepers.optuna import OptunaSweeper
from mlrun.cli import command, points
from mlrun.cli.objective import objective, status
from mlrun.cli.space import search
from mlrun.errors import InUse, UserError
from mlrun.report.build import build, render
from mlrun.report.read import read
from mlrun.train import lock

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
TWO = [f"~hydra.sweeper.methods.{name}" for name in ("zero_layer", "restore", "vcycle")]
FIND = [
    "hydra/sweeper=optuna", *SMALL, *TWO, "experiment=find", "budget=12 steps", "eval.every=3 steps",
    "hydra.sweeper.report_seeds=[3]", "run=s",
]  # fmt: skip
SWEEPER = {
    "trials": 2, "at_a_time": 1, "seed": 0, "report_seeds": [3],
    "space": {"optimizer.lr": "tag(log, interval(1e-3, 1e-2))"},
    "methods": {"scratch": {}, "vcycle": {"cycle.alpha": "0,1"}},
}  # fmt: skip


def asked(*overrides: str, **changes: Any) -> Any:
    return search(OmegaConf.create({**SWEEPER, **changes}), command.parsed(overrides), 0)


def test_the_space_of_each_method() -> None:
    found = asked("batch=8", "optimizer.clip=1,2")
    assert [d.key for d in found.methods["scratch"]] == ["optimizer.lr", "optimizer.clip"]
    assert [d.key for d in found.methods["vcycle"]] == ["optimizer.lr", "cycle.alpha", "optimizer.clip"]
    lr = found.methods["scratch"][0]
    assert lr.log and lr.ends == ("optimizer.lr=0.001", "optimizer.lr=0.01") and found.fixed == ("batch=8",)
    assert asked("optimizer.lr=0.5").methods["scratch"] == (), "what is set is no longer looked for"
    assert found.probes("scratch")[0] == ("batch=8", "method=scratch", "optimizer.lr=0.001", "optimizer.clip=1")
    assert len(found.probes("vcycle")) == 4


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"trials": 0}, "hydra.sweeper.trials=0: allowed: an integer of at least 1"),
        ({"report_seeds": [0, 1]}, "hydra.sweeper.report_seeds=[0, 1]: allowed: seeds, each once, without seed=0"),
        ({"report_seeds": []}, "hydra.sweeper.report_seeds=[]: allowed: seeds"),
        ({"methods": {}}, "hydra.sweeper.methods={}: allowed: choices"),
        ({"space": {"optimizer.lr": "interval(2, 1)"}}, "optimizer.lr=interval(2, 1): allowed: interval(LOW, HIGH)"),
    ],
)
def test_a_search_that_cannot_be(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        asked(**changes)
    assert len(refused.value.problems) == 1 and refused.value.problems[0].startswith(line)


def test_what_is_wrong_in_the_space_is_told_before_any_work() -> None:
    with pytest.raises(UserError, match=r"optimizer.lx=1: allowed:"):
        points.of(command.read(["-m", *FIND, "optimizer.lx=1,2"]))


def ended(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob("s/*/summary.json")]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    told = [sys.executable, "-m", "mlrun", "-m", *overrides]
    return subprocess.Popen(
        told, cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[Path, bytes]]:
    """A search that was killed after its first run and went on: its folder, what it printed, the logs at its death."""
    folder = tmp_path_factory.mktemp("find")
    process = start(folder, *FIND, "hydra.sweeper.trials=2")
    deadline = time.monotonic() + 240
    while not ended(folder):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {run: (run / "log.jsonl").read_bytes() for run in ended(folder)}
    process = start(folder, *FIND, "hydra.sweeper.trials=2")
    out, _ = process.communicate(timeout=480)
    assert process.returncode == 0, out
    return folder / "s", out, before


def test_a_search_goes_on_and_trains_no_finished_run_again(found: tuple[Path, str, dict[Path, bytes]]) -> None:
    folder, _, before = found
    assert before and all((run / "log.jsonl").read_bytes() == log for run, log in before.items())
    said = json.loads((folder / "search.json").read_text())
    assert {method: len(runs) for method, runs in said["tried"].items()} == {"scratch": 2, "one_layer": 2}
    for method, runs in said["tried"].items():
        losses = {
            one["run"]: json.loads((folder / one["run"] / "summary.json").read_text())["val_loss"] for one in runs
        }
        assert said["chosen"][method]["run"] == min(losses, key=lambda name: losses[name])
    assert set(said["fresh"].values()) == {"scratch", "one_layer"}


def test_its_report_is_of_fresh_seeds_and_says_what_searching_cost(found: tuple[Path, str, dict[Path, bytes]]) -> None:
    folder, out, _ = found
    told = json.loads((folder / "report/report.json").read_text())
    assert {run["seed"] for group in told["groups"] for run in group["runs"]} == {3}
    assert len(told["groups"]) == 1, "settings that the search chose are no reason not to compare"
    spent = [read(path).last["flops"] for path in folder.glob("search-*")]
    assert told["searches"][0]["flops"] == pytest.approx(sum(spent)) and told["groups"][0]["baseline"]["tuned"]
    tried = len(json.loads((folder / "search.json").read_text())["tried"]["scratch"])
    assert f"the baseline is the best of {tried} settings of a search" in " ".join(told["groups"][0]["summary"])
    assert "Finding it cost" in out and "settings tried: scratch 2, one_layer 2" in out


def test_a_pruned_run_counts_as_tried_and_its_flops_as_spent(found: tuple[Path, str, dict[Path, bytes]]) -> None:
    folder, _, _ = found
    chosen = json.loads((folder / "search.json").read_text())["chosen"]["scratch"]["run"]
    (path,) = [p for p in folder.glob("search-scratch-*") if p.name != chosen]
    summary = (path / "summary.json").read_text()
    (path / "summary.json").write_text(json.dumps({"status": "pruned", "reason": "for the test", "val_loss": 1.0}))
    try:
        report = build(sorted(folder.glob("fresh-*")), folder.parent / "again")
        tried = next(t for t in report.searches[0].tried if t.method == "scratch")
        assert (tried.settings, tried.ended["pruned"], tried.ended["finished"]) == (2, 1, 1)
        assert report.searches[0].flops == pytest.approx(sum(read(p).last["flops"] for p in folder.glob("search-*")))
        alone = render(build(sorted(folder.glob("search-scratch-*")), folder.parent / "alone"))
        assert "is pruned at" in alone and status(path) == "pruned"
        assert Job(folder, path.name, "cpu", OmegaConf.create({"objective": "loss"})).result().return_value == math.inf
    finally:
        (path / "summary.json").write_text(summary)


def test_what_a_sweeper_is_told(found: tuple[Path, str, dict[Path, bytes]]) -> None:
    run = read(found[0] / "search-scratch-0")
    assert run.final is not None

    def told(**find: Any) -> float:
        return objective(run.folder, OmegaConf.create(find))

    assert told(objective="loss") == run.final.loss
    first, second = run.evaluations[:2]
    assert first.flops < told(objective="flops", objective_loss=(first.loss + second.loss) / 2) < second.flops
    assert told(objective="flops", objective_loss=0.1) == math.inf
    assert Job(found[0], "absent", "cpu", OmegaConf.create({"objective": "loss"})).result().return_value == math.inf
    assert Job(found[0], "absent", "cpu", None).result().return_value is None


def test_another_search_is_refused_and_a_grid_of_hydra_s_own_prunes(found: tuple[Path, str, Any]) -> None:
    folder = found[0].parent
    process = start(folder, *FIND, "hydra.sweeper.trials=2", "hydra.sweeper.seed=1")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 2 and "or undo what differs: seed" in out, out
    basic = ["hydra/sweeper=basic", *SMALL, "experiment=find", "cycle=scratch", "budget=12 steps", "find.prune_after=1"]
    process = start(folder, *basic, "eval.every=2 steps", "find.prune=0.1", "optimizer.lr=1e-2,1e-6", "run=basic")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "pruned: held-out loss" in out and "is pruned at" in out, out
    assert sorted(status(path) for path in (folder / "basic").glob("[01]-*")) == ["finished", "pruned"]


class Died(BaseException):
    """The process is killed here."""


def sweeper(folder: Path, at_a_time: int) -> OptunaSweeper:
    """Return a search of two methods whose runs end at once, by what they set."""
    made = OptunaSweeper()
    told = {**SWEEPER, "trials": 4, "at_a_time": at_a_time}
    told["space"] = {**SWEEPER["space"], "batch": "8", "optimizer.clip": "1,2", "optimizer.beta1": "interval(0.5, 0.9)"}
    made.config = OmegaConf.create({
        "hydra": {"sweep": {"dir": str(folder)}, "sweeper": told}, "seed": 0, "find": {"objective": "loss"},
    })  # fmt: skip
    made.launcher = SimpleNamespace(launch=lambda points, initial_job_idx: None)
    return made


def searched(folder: Path, at_a_time: int) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    sweeper(folder, at_a_time).sweep([])
    return dict(json.loads((folder / "search.json").read_text()))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_sweeper, "status", lambda folder: "finished")
    number = lambda folder: int(hashlib.sha256(folder.name.encode()).hexdigest()[:6], 16)  # noqa: E731
    monkeypatch.setattr(optuna_sweeper, "objective", lambda folder, find: float(number(folder)))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("at_a_time", [1, 3])
@pytest.mark.parametrize("half", [True, False])
def test_a_search_killed_at_any_record_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int, half: bool
) -> None:
    whole = searched(tmp_path / "whole", at_a_time)
    real, lives = JournalFileBackend.append_logs, 0

    def append(self: Any, logs: list[dict[str, Any]]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            with open(tmp_path / "cut/search.journal", "ab") as journal:
                journal.write(json.dumps(logs[0]).encode()[:9] if half else b"")
            (tmp_path / "cut/search.journal.lock").symlink_to("of one that was killed")
            raise Died
        real(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", append)
    while lives < 80:
        left, lives = 4 + lives % 3, lives + 1  # two records are of the opening, one to three more get through
        try:
            assert searched(tmp_path / "cut", at_a_time) == whole
            break
        except Died:
            continue
    assert 10 < lives < 80


@pytest.mark.usefixtures("quick")
def test_a_second_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    with lock.alone(tmp_path / "search.journal"), pytest.raises(InUse, match="a folder that no other process uses"):
        searched(tmp_path, 1)
    assert (tmp_path / "search.journal").read_bytes() == b"" and not (tmp_path / "search.json").exists()
    searched(tmp_path, 1)


@pytest.mark.usefixtures("quick")
def test_a_damaged_journal_is_one_line_and_a_full_disk_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(tmp_path, 1)
    lines = (tmp_path / "search.journal").read_text().splitlines(keepends=True)
    (tmp_path / "search.journal").write_text("".join([*lines[:2], "{]\n", *lines[3:]]))
    with pytest.raises(UserError, match=r"search\.journal: line 3 is no record; restore the file"):
        searched(tmp_path, 1)

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(OSError) as caught:
        searched(tmp_path / "full", 1)
    assert caught.value.filename == str(tmp_path / "full/search.journal")
