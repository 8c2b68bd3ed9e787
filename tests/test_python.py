"""mlrun from Python: docs/python.md runs as printed, mistakes are exceptions, and a name loads only what it needs."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy import SMALL

import mlrun
from mlrun import files
from mlrun.errors import UserError
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def python(code: str) -> str:
    """Return what code prints in a fresh process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def test_the_page_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    said = []
    for block in BLOCKS:
        exec(block, names)
        said.append(capsys.readouterr().out.splitlines())
    planned, trained, compared, moved, wrong = said
    assert len(planned) == 4 and planned[-1].endswith("% of the budget")
    assert all(float(loss) > 0 for loss in trained[-1].split())
    assert compared[-1] == "outputs/report/index.html" and Path(compared[-1]).exists()
    assert 0 < float(moved[0]) < 1
    assert len(wrong) == 1 and wrong[0].startswith("budget=20: allowed:")
    summary = files.read_json(Path("outputs/cycle/summary.json"))
    assert names["summary"] == summary
    assert summary["status"] == "finished"


def test_a_plan_is_that_of_the_command_line() -> None:
    found = mlrun.plan([*SMALL, "budget=20 steps"])
    assert isinstance(found, Plan)
    code = "from mlrun.__main__ import main; main()"
    words = [sys.executable, "-c", code, "task=plan", "run=a", *SMALL, "budget=20 steps"]
    subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    assert files.read_json(Path("a/plan.json")) == as_dict(found)


def test_planning_writes_nothing() -> None:
    mlrun.plan(SMALL)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("overrides", "told"), [
    (["budget=20"], "budget=20: allowed:"),
    (["modle=x"], "modle=x"),
    (["seed=1,2"], "seed=1,2: allowed: one value"),
    (["-m", "seed=1,2"], "-m: allowed: KEY=VALUE"),
    (["--version"], "--version: allowed: KEY=VALUE"),
    (["task=report"], "task=report: allowed: no task"),
    (["hydra.mode=MULTIRUN"], "allowed: one run on this machine"),
    ("seed=1", "overrides=seed=1: allowed: a list"),
])  # fmt: skip
def test_mistakes_are_exceptions_and_nothing_is_written(overrides: list[str], told: str) -> None:
    for function in (mlrun.plan, mlrun.run):
        with pytest.raises(UserError) as caught:
            function(overrides)
        assert told in caught.value.problems[0]
    assert list(Path().iterdir()) == []


def test_what_is_not_there_is_an_exception() -> None:
    with pytest.raises(UserError, match="folder=nowhere"):
        mlrun.load("nowhere")
    with pytest.raises(UserError, match="runs=nowhere"):
        mlrun.report(["nowhere"])
    with pytest.raises(UserError, match="a list of folders"):
        mlrun.report("nowhere")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mlrun.nothing
    assert list(Path().iterdir()) == []


def test_importing_loads_nothing_and_a_plan_no_torch() -> None:
    heavy = "torch, numpy, hydra, omegaconf, matplotlib, datasets, transformers"
    show = f"print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    assert python(f"import sys, mlrun; {show}") == "[]\n"
    code = "import sys; from mlrun import plan; plan(['budget=20 steps']); print('torch' in sys.modules)"
    assert python(code) == "False\n"


@pytest.mark.parametrize("before", ["import mlrun", "import mlrun.run, mlrun.plan.make, mlrun.report.build"])
def test_every_name_may_be_called_whatever_was_imported_before(before: str) -> None:
    names = ", ".join(mlrun.__all__)
    after = f"import mlrun.run as r, mlrun.plan.make as m; print(*map(callable, ({names}, r.train, m.make_plan)))"
    assert python(f"{before}; from mlrun import {names}; {after}") == " ".join(["True"] * 9) + "\n"


def test_modules_stay_modules() -> None:
    from mlrun import plan, report, run

    for module in (plan, report, run):
        assert pickle.loads(pickle.dumps(module)) is module
    assert run.train.__module__ == "mlrun.run" and plan.__name__ == "mlrun.plan"


def test_types_are_shipped() -> None:
    assert (Path(mlrun.__path__[0]) / "py.typed").is_file()
