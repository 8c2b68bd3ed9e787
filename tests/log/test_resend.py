"""Claims about sending logs again: each row once whatever was killed, and one line for what cannot be sent."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_log import PLAN, RESEND, in_a_process, record, the_offline_run

from mlrun.cli import command, points, tasks
from mlrun.errors import UserError
from mlrun.log.resend import _whole, settings
from mlrun.log.wandb import WandbLogger, resend_command, run_id

WANDB = {"wandb": {"_target_": "mlrun.log.wandb.WandbLogger", "mode": "offline", "project": "p", "tags": ["a"]}}


def a_run(folder: Path, steps: int = 9, logger: Any = WANDB, tail: str = "") -> Path:
    """Write a run folder whose log has so many training steps, and then a tail."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"logger": logger}))
    (folder / "plan.json").write_text(json.dumps(PLAN))
    lines = [json.dumps(record(step=step)) for step in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("".join(f"{line}\n" for line in lines) + tail)
    return folder


def rows(folder: Path) -> list[int]:
    return [row["_step"] for row in the_offline_run(folder)["history"] if "train/loss" in row]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from mlrun.log.resend import resend, settings
from mlrun.log.wandb import WandbSink
send = WandbSink.write
def write(self, record):
    send(self, record)
    if record["step"] == 5:
        time.sleep(1.6)
        os.kill(os.getpid(), signal.SIGKILL)
WandbSink.write = write
resend(Path(sys.argv[1]), settings(Path(sys.argv[1]), None))
"""


def test_every_row_is_there_once_also_after_a_killed_sending(tmp_path: Path) -> None:
    """What a killed run left in its log after the last checkpoint is sent too; half a line is none."""
    folder = a_run(tmp_path / "run", tail='{"kind": "tr')
    assert in_a_process(RESEND, folder).stdout.strip() == "(9, True)"
    with pytest.raises(subprocess.CalledProcessError):
        in_a_process(KILLED, folder)
    in_a_process(RESEND, folder)
    found = the_offline_run(folder)
    assert rows(folder) == list(range(1, 10))
    assert (found["id"], found["project"], found["tags"]) == (run_id(folder), "p", ["a"])


def test_sending_twice_in_a_second_leaves_one(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", steps=3)
    in_a_process(RESEND + RESEND.splitlines()[-1], folder)
    assert rows(folder) == [1, 2, 3] and list(folder.glob("wandb/.offline-run-*")) == []


def test_a_start_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", steps=3)
    in_a_process(RESEND, folder)
    (folder / "wandb_id").write_text("no/id\n")  # W&B refuses it
    with pytest.raises(subprocess.CalledProcessError):
        in_a_process(RESEND, folder)
    assert rows(folder) == [1, 2, 3]


def test_what_this_command_sets_otherwise_wins(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    assert settings(folder, None) == WandbLogger(mode="offline", project="p", tags=("a",))
    found = settings(folder, WandbLogger(mode="online", group="g"))
    assert (found.mode, found.group, found.project, found.tags) == ("online", "g", "p", ("a",))


def test_a_run_without_wandb_is_sent_if_the_command_names_it(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", logger={})
    assert settings(folder, WandbLogger(project="new")).project == "new"
    with pytest.raises(UserError, match="give logger=wandb here") as error:
        settings(folder, None)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("logger", "said"),
    [
        ({"wandb": {"mode": "disabled"}}, "logger.wandb.mode=disabled"),
        ({"wandb": {"wings": 2}}, "a run with the settings of this version"),
        ({"wandb": {"mode": "sometimes"}}, "logger.wandb.mode=sometimes"),
        (7, "config.yaml: logger holds no settings"),
        ({"wandb": 7}, "config.yaml: logger holds no settings"),
    ],
)
def test_what_cannot_be_sent_is_one_line(tmp_path: Path, logger: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        settings(a_run(tmp_path / "run", logger=logger), None)
    assert len(error.value.problems) == 1


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", steps=2, tail="half\n")
    with pytest.raises(subprocess.CalledProcessError) as error:
        in_a_process(RESEND, folder)
    assert "log.jsonl: line 3 is no record" in error.value.stderr


NO_RECORDS = ["[" * 50_000, "[1]", "{}", "half", '{"kind": "val"}', '{"kind": "val", "step": "1", "level": 1}']


@pytest.mark.parametrize("line", NO_RECORDS)
def test_what_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(f"{json.dumps(record(step=1))}\n{line}\n")
    with pytest.raises(UserError, match=r"log.jsonl: line 2 is no record"):
        list(_whole(log))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("log.jsonl", None, "it has no log.jsonl: leave it out"),
        ("plan.json", None, "it has no plan.json: leave it out"),
        ("log.jsonl", "", "log.jsonl: no whole record in it"),
        ("log.jsonl", '{"kind": "val"}\n', "log.jsonl: line 1 is no record"),
        ("plan.json", "{}", "plan.json: no plan of ours"),
        ("summary.json", "[", "summary.json: cannot be read as JSON"),
    ],
)
def test_of_runs_of_which_one_is_damaged_none_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None, said: str
) -> None:
    whole, damaged = (a_run(tmp_path / letter) for letter in "ab")
    (damaged / name).unlink(missing_ok=True)
    if text is not None:
        (damaged / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        task(monkeypatch, tmp_path, "logger=none")
    assert len(error.value.problems) == 1 and str(damaged) in str(error.value)
    assert not (whole / "wandb").exists()


def test_logs_are_sent_to_wandb_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path / "a")
    with pytest.raises(UserError, match=r"^logger=tensorboard: allowed: wandb, none"):
        task(monkeypatch, tmp_path, "logger=[wandb,tensorboard]")


def task(monkeypatch: pytest.MonkeyPatch, runs: Path, *arguments: str) -> None:
    """Do what `mlrun task=resend runs=RUNS` does."""
    monkeypatch.setattr(WandbLogger, "start", lambda *_: pytest.fail("one was sent"))
    (point,) = points.of(command.read(["task=resend", f"runs={runs}", *arguments]))
    tasks.resend(point.settings, None)


def test_an_id_that_a_killed_start_left_empty_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "wandb_id").touch()
    assert len(run_id(tmp_path)) == 8 and run_id(tmp_path) == run_id(tmp_path)


def test_the_command_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    assert resend_command(Path("a b/1-x=1,y=2")) == "mlrun task=resend 'runs=a b/1-x=1,y=2'"
