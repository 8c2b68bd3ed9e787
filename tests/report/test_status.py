"""What `task=status` says of runs: of recorded ones in every state, and of one that is at work."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fake_runs
import pytest
import torch
from omegaconf import OmegaConf

from mlrun.cli import tasks
from mlrun.errors import UserError
from mlrun.files import held
from mlrun.report import status
from mlrun.report.compare import compare
from mlrun.report.read import RUNNING_SECONDS, read_all
from mlrun.report.status import Line, look, render
from mlrun.train.lock import claimed
from mlrun.train.parallel.processes import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
RECORDED = fake_runs.RECORDED


def nobody(folder: Path) -> bool | None:
    return False


def somebody(folder: Path) -> bool | None:
    return True


def unknown(folder: Path) -> bool | None:
    return None


def cut(tmp_path: Path, name: str, records: int, summary: dict[str, Any] | None = None, **start: Any) -> Path:
    """Return a copy of a recorded run whose log ends after some records."""
    folder = tmp_path / name
    shutil.copytree(RECORDED / name, folder)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()[:records]]
    lines[0] |= {"host": socket.gethostname(), **start}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").unlink()
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def one(folder: Path, held: status.Held = nobody) -> Line:
    (found,) = look([folder], held)
    return found


def test_finished_runs_are_listed_with_what_they_saved() -> None:
    found = {line.folder.name: line for line in look([RECORDED], nobody)}
    assert {line.state for line in found.values()} == {"finished"}
    assert {line.done for line in found.values()} == {1.0}
    assert found["scratch"].saved == "baseline"
    assert found["grow"].saved == "not reached"
    summary = json.loads((RECORDED / "grow" / "summary.json").read_text())
    assert (found["grow"].loss, found["grow"].host) == (summary["val_loss"], "vm")
    assert (found["2level-branch"].stage, found["grow"].seconds_left) == ("4/4 level 1", None)


def test_a_saving_is_that_of_the_report(tmp_path: Path) -> None:
    fake_runs.run(tmp_path / "a", "scratch", fake_runs.SCRATCH)
    fake_runs.run(tmp_path / "b", "2level", fake_runs.TWO, quality=0.05)
    (group,) = compare(read_all([tmp_path / "a", tmp_path / "b"]))
    saved = group.rows[0].spread("flops").mean
    assert saved is not None and saved > 0
    assert [line.saved for line in look([tmp_path], nobody)] == ["baseline", f"{saved:.1%}"]


@pytest.mark.parametrize(
    ("said", "held", "state"),
    [
        (None, somebody, "running"),
        (None, nobody, "stopped"),
        ({"status": "interrupted", "reason": "SIGTERM", "val_loss": 5.0}, nobody, "stopped"),
        ({"status": "failed", "reason": "diverged", "val_loss": None}, nobody, "failed"),
        ({"status": "pruned", "reason": "hopeless", "val_loss": 5.0}, nobody, "pruned"),
        ({"status": "pruned", "reason": "hopeless", "val_loss": 5.0}, somebody, "running"),
    ],
)
def test_states(tmp_path: Path, said: dict[str, Any] | None, held: status.Held, state: str) -> None:
    assert one(cut(tmp_path, "2level", 12, said), held).state == state


@pytest.mark.parametrize(("age", "host", "held", "state"), [
    (0, None, unknown, "running"),
    (RUNNING_SECONDS + 60, None, unknown, "stopped"),
    (0, "elsewhere", nobody, "running"),
    (RUNNING_SECONDS + 60, "elsewhere", nobody, "stopped"),
    (0, None, nobody, "stopped"),
    (-RUNNING_SECONDS - 60, "elsewhere", nobody, "stopped"),
    (-60, "elsewhere", nobody, "running"),
])  # fmt: skip
def test_where_locks_say_nothing_the_log_does(
    tmp_path: Path, age: float, host: str | None, held: status.Held, state: str
) -> None:
    folder = cut(tmp_path, "2level", 12, **({} if host is None else {"host": host}))
    os.utime(folder / "log.jsonl", (time.time() - age, time.time() - age))
    assert one(folder, held).state == state


def test_what_has_not_begun_waits_and_what_never_could_has_failed(tmp_path: Path) -> None:
    for name, file in (("a-10", "plan.json"), ("a-2", "error.txt"), ("a-3", ".lock"), ("a-4", "config.yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    lines = look([tmp_path], lambda folder: folder.name == "a-3")
    assert [(line.folder.name, line.state) for line in lines] == [
        ("a-2", "failed"), ("a-3", "running"), ("a-10", "waiting"),
    ]  # fmt: skip


def test_time_left_is_that_of_the_newest_records_and_of_each_level(tmp_path: Path) -> None:
    """100 FLOPs a second at level 2, 200 at level 1; evaluations take as long as training."""
    plan = fake_runs.plan(fake_runs.TWO)
    first, second, third = (row["flops"] for row in plan["stages"])
    began = time.time() - 1000
    half = second / 2
    val, train = fake_runs.template("val", level=2), fake_runs.template("train")
    place = {"stage": 0, "level": 1, "step": 0, "tokens": 0, "flops_body": 0}
    here = {**place, "stage": 1, "level": 2}
    trained = first / 200 + half / 100
    log = [
        val | place | {"flops": 0, "seconds": 0.0},
        val | place | {"flops": first, "seconds": first / 200},
        val | here | {"flops": first, "seconds": first / 200},
        train | here | {"flops": first + half - 100, "seconds": trained - 1},
        train | here | {"flops": first + half, "seconds": trained},
    ]
    start = fake_runs.MACHINE | {"time": datetime.fromtimestamp(began, UTC).isoformat()}
    folder = fake_runs.write(tmp_path / "a", fake_runs.config("2level"), plan, log, None, (start,))
    os.utime(folder / "log.jsonl", (began + 2 * trained,) * 2)
    line = one(folder, somebody)
    assert line.seconds_left == pytest.approx(2 * (half / 100 + third / 200))
    assert line.done == pytest.approx((first + half) / plan["totals"]["flops"])
    assert line.stage == "2/3 level 2"


def test_a_clock_that_was_set_back_makes_no_time_left_shorter(tmp_path: Path) -> None:
    folder = cut(tmp_path, "2level", 12)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    trained = lines[-1]["seconds"] - lines[0]["seconds"]
    told = one(folder, somebody)
    assert told.seconds_left is not None
    for wall, known in ((trained + 5, True), (trained - 5, False), (-3600, False)):
        began = datetime.fromisoformat(lines[0]["time"]).timestamp()
        os.utime(folder / "log.jsonl", (began + wall,) * 2)
        assert (one(folder, somebody).seconds_left is not None) == known
    assert "n/a" in render([one(folder, somebody)])


def test_a_run_whose_failure_was_noted_is_at_work_nowhere(tmp_path: Path) -> None:
    folder = cut(tmp_path, "2level", 12, host="elsewhere")
    assert one(folder).state == "running" and read_all([folder])[0].status == "running"
    (folder / "error.txt").write_text("mlrun: No space left on device\n")
    os.utime(folder / "log.jsonl", (time.time() - 1,) * 2)
    assert one(folder).state == "failed" and read_all([folder])[0].status == "unfinished"


def test_what_a_report_calls_running_holds_its_lock_where_locks_can_tell(tmp_path: Path) -> None:
    folder = cut(tmp_path, "2level", 12)
    assert read_all([folder])[0].status == "unfinished", "it was killed just now"
    with claimed(folder, ALONE):
        os.utime(folder / "log.jsonl", (time.time() - RUNNING_SECONDS - 60,) * 2)
        assert read_all([folder])[0].status == "running", "its evaluation takes long"


def test_time_left_is_unknown_before_anything_is_measured(tmp_path: Path) -> None:
    assert one(cut(tmp_path, "2level", 2), somebody).seconds_left is None
    assert one(cut(tmp_path, "grow", 1), somebody).seconds_left is None


@pytest.mark.parametrize("damage", ["{]\n", "[1]\n", '{"kind": "val"}\n', '{"kind": "odd"}\n', '{"kind": "start"}\n'])
def test_a_damaged_log_is_one_line(tmp_path: Path, damage: str) -> None:
    shutil.copytree(RECORDED / "scratch", tmp_path / "a")
    folder = cut(tmp_path, "2level", 12)
    with open(folder / "log.jsonl", "a") as log:
        log.write(damage)
    good, bad = sorted(look([tmp_path], somebody), key=lambda line: line.folder.name != "a")
    assert (good.state, bad.state) == ("finished", "damaged")
    assert good.saved == "baseline"
    text = render([good, bad])
    assert len(text.splitlines()) == 4 and max(map(len, text.splitlines())) <= 110


def test_other_damage_is_one_line_too(tmp_path: Path) -> None:
    for name, text in (("plan.json", "{}"), ("config.yaml", "a: ["), ("config.yaml", "seed: 0"), ("plan.json", None)):
        folder = cut(tmp_path, "2level", 12)
        (folder / name).unlink() if text is None else (folder / name).write_text(text)
        assert one(folder, somebody).state == "damaged"
        shutil.rmtree(folder)
    folder = cut(tmp_path, "2level", 12)
    (folder / "config.yaml").write_text("")
    assert one(folder, somebody).reason == f"{folder}/config.yaml: no settings in it; restore the file"
    shutil.rmtree(folder)
    shutil.copytree(RECORDED / "scratch", tmp_path / "2level")
    log = tmp_path / "2level" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]))
    assert one(tmp_path / "2level").reason is not None


@pytest.mark.parametrize(
    ("name", "change", "where"),
    [
        ("log.jsonl", lambda text: text + "{]\n", "log.jsonl: line 45: damaged (JSONDecodeError"),
        ("log.jsonl", lambda text: text.replace('"flops": ', f'"flops": {"9" * 400}', 3), "log.jsonl: line "),
        (
            "log.jsonl",
            lambda text: text.replace('"stage": 1', '"stage": 91'),
            "plan.json or log.jsonl: damaged (ValueError a record of stage 92, the plan has 2",
        ),
        ("config.yaml", lambda _: "logger: 7", "config.yaml or plan.json: damaged (KeyError 'seed')"),
        ("plan.json", lambda text: json.dumps(json.loads(text) | {"totals": {"flops": 0}}), "plan.json or log.jsonl"),
        ("plan.json", lambda text: json.dumps(json.loads(text) | {"stages": 7}), "config.yaml or plan.json"),
        ("evaluate.json", lambda _: '{"cloze": {"metric": 3}}', "evaluate.json: damaged (KeyError 'n')"),
        ("evaluate.json", lambda _: '{"cloze": 3}', "evaluate.json: damaged (TypeError"),
        ("summary.json", lambda _: '{"status": "fnished"}', "summary.json: status=fnished: allowed: finished, inter"),
        ("log.jsonl", None, "log.jsonl: it is missing; restore the file"),
    ],
)
def test_the_line_says_which_file_is_damaged(
    tmp_path: Path, name: str, change: Callable[[str], str] | None, where: str
) -> None:
    folder = tmp_path / ("long" * 20)
    shutil.copytree(RECORDED / "grow", folder)
    path = folder / name
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text() if path.exists() else ""), encoding="latin-1")
        with pytest.raises(UserError, match=re.escape(where)):
            read_all([folder])
    line = one(folder, nobody)
    assert (line.state, where in str(line.reason)) == ("damaged", True), line.reason
    assert where[:20] in render([line]).splitlines()[1]


def test_rows_fit_whatever_is_in_them(tmp_path: Path) -> None:
    folder = tmp_path / ("a-long-name" * 12)
    lines = [
        Line(folder, "running", "12/14 level 2", 0.123, 1e7, 12.34567, "\N{GREATER-THAN OR EQUAL TO} 12.3%", "h" * 40),
        Line(folder, "damaged", reason="x" * 300),
        Line(folder, "waiting"),
    ]
    text = render(lines).splitlines()
    assert max(map(len, text)) <= 110 and len(text) == 5
    assert text[-1] == "3 runs: 1 running, 1 waiting, 1 damaged"


def test_on_a_narrow_terminal_folders_give_way_and_no_row_wraps(tmp_path: Path) -> None:
    lines = [Line(tmp_path / ("long" * 20), "running", "2/14 level 2", 0.1, 60.0, 12.3, "12.3%", "h") for _ in range(2)]
    narrow, wide = render(lines, 80).splitlines(), render(lines, 300).splitlines()
    assert max(map(len, narrow)) <= 80 < max(map(len, wide)) <= 110
    assert [row.split()[1:] for row in narrow] == [row.split()[1:] for row in wide]


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log.jsonl, plan.json or error.txt") as caught:
        look([tmp_path], nobody)
    assert len(caught.value.problems) == 1


def test_looking_at_a_lock_holds_nobody_up(tmp_path: Path) -> None:
    assert held(tmp_path) is False and not (tmp_path / ".lock").exists()
    with claimed(tmp_path, ALONE):
        assert held(tmp_path) is True and held(tmp_path) is True
    (tmp_path / ".lock").chmod(0o444)
    assert held(tmp_path) is False


LIVE = """
import dataclasses, sys
from pathlib import Path
import fake_runs, toy
config = dataclasses.replace(toy.make(budget="1M steps"), resolved=fake_runs.config("2level"))
toy.run(Path(sys.argv[1]), config)
"""


def test_a_run_at_work_is_running_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real run in a process of its own, looked at while it trains; then it is killed, and looked at again."""
    folder, tests = tmp_path / "runs" / "a", Path(__file__).parent.parent
    paths = os.pathsep.join([str(tests), str(tests / "train"), str(tests.parent)])
    command = [sys.executable, "-c", LIVE, str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths})
    settings = OmegaConf.create({"runs": f"{tmp_path}/runs"})
    try:
        log, until = folder / "log.jsonl", time.time() + 120
        while not (log.exists() and log.read_text().count('"train"') > 5):
            assert child.poll() is None and time.time() < until
            time.sleep(0.05)
        before = {path.name for path in folder.iterdir()}
        tasks.status(settings, None)
        header, row, total = capsys.readouterr().out.splitlines()
        assert total == "1 run: 1 running" and row.endswith(socket.gethostname()[:11]), row
        assert "1/3 level 1" in row and row.count("n/a") == 1 and header.split()[:2] == ["run", "state"]
        assert {path.name for path in folder.iterdir()} == before
        size = log.stat().st_size
        while log.stat().st_size == size:
            assert child.poll() is None and time.time() < until
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    tasks.status(settings, None)
    assert capsys.readouterr().out.splitlines()[-1] == "1 run: 1 stopped"
