"""`task=calibrate` keeps what it measures in the cache folder; plans on the same machine and family find it there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import measured as known
import pytest
import toy

from mlrun import __main__
from mlrun.cli import calibrated, command, device, points, tasks
from mlrun.config.load import Config
from mlrun.errors import UserError
from mlrun.plan.calibration import Calibration, as_record
from mlrun.plan.stages import Plan

SMALL = ["hardware=cpu", "hardware.threads=1", "cycle=2level"]


def composed(*overrides: str) -> tuple[Config, Plan]:
    (point,) = points.of(command.read([*SMALL, *overrides]))
    config, plan = tasks.planned(point.settings)
    return config, device.settle(config, plan, None)


def measured() -> Calibration:
    return known.calibration(known.plan_of())


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (["model.layer=6"], True),
        (["batch=32", "budget=1M tokens"], True),
        (["optimizer.lr=1e-5"], True),
        (["hardware.threads=2"], False),
        (["hardware.precision=bf16"], False),
        (["hardware.compile=true"], False),
        (["hardware.activation_checkpointing=true"], False),
        (["optimizer=muon"], False),
        (["optimizer.ema=0.9"], False),
        (["model=llama_tiny"], False),
    ],
)
def test_a_calibration_holds_for_a_family_and_a_way_to_compute(changes: list[str], same: bool, tmp_path: Path) -> None:
    cache = f"cache={tmp_path}"
    before, after = (composed(cache), composed(cache, *changes))
    calibrated.keep(before[0], measured())
    assert (calibrated.find(after[0]) is not None) is same


def test_a_plan_without_a_calibration_guesses_nothing(tmp_path: Path) -> None:
    assert calibrated.predicted(*composed(f"cache={tmp_path}")) is None


def test_threads_and_processes_are_those_of_the_environment(tmp_path: Path) -> None:
    config, _ = composed(f"cache={tmp_path}", "hardware.threads=null")
    found: list[dict[str, Any]] = [
        calibrated.machine(config, env) for env in ({}, {"OMP_NUM_THREADS": "1"}, {"WORLD_SIZE": "2"})
    ]
    assert found[0] != found[1] and found[0] != found[2] and found[2]["processes"] == 2


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    config, _ = composed(f"cache={tmp_path}")
    file = calibrated.keep(config, measured())
    for text in ("{}", "[]", '{"sizes": 3}', json.dumps({**as_record(measured()), "more": 1}), "{"):
        file.write_text(text)
        with pytest.raises(UserError, match="remove it, and measure again with task=calibrate"):
            calibrated.find(config)


@pytest.mark.parametrize("every", ["3%", "10 steps", "100%"])
def test_evaluations_and_saves_are_counted_as_the_loop_does(every: str, tmp_path: Path) -> None:
    config, plan = composed(f"cache={tmp_path}", f"eval.every={every}", f"checkpoint.every={every}", "budget=100 steps")
    found = calibrated.habits(config, plan)
    for stage in plan.stages:
        period = calibrated.due(plan, stage, every)
        done = [step for step in range(stage.first + 1, stage.end + 1) if step % period == 0 and step != stage.end]
        assert found.evaluations[stage.index] == len(done) + 2  # the stage's start and end
        assert found.saves[stage.index] == len(done) + 1


def test_calibrate_then_plan_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*toy.SMALL, *SMALL, "model.vocab=300", "data.validation_samples=8", "eval.batch=4", "budget=20 steps"]

    def mlrun(task: str) -> str:
        said = [f"task={task}", *small, f"cache={tmp_path / 'cache'}"]
        said += [f"run={tmp_path / task}"] if task == "plan" else []
        monkeypatch.setattr(sys, "argv", ["mlrun", *said])
        __main__.main()
        return capsys.readouterr().out

    folder = tmp_path / "cache" / calibrated.FOLDER
    before = mlrun("plan")
    assert "calibrated" not in before and not folder.exists()
    mlrun("calibrate")
    (file,) = folder.glob("*.json")
    first = json.loads(file.read_text())
    after = mlrun("plan")
    assert str(first["name"]) in after and first["time"][:10] in after
    file.write_text(json.dumps({**first, "time": "1999-01-01T00:00:00+00:00"}))
    assert "1999-01-01" in mlrun("plan")
    mlrun("calibrate")
    assert [one.name for one in folder.iterdir()] == [file.name], "the same command replaces it"
    assert json.loads(file.read_text())["time"][:4] != "1999"
