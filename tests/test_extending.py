"""docs/extending.md, section by section: its files are written down as printed and its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text(), re.M | re.S))
FILE = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", re.M | re.S)
COMMANDS = re.compile(r"^```console\n(.*?)^```", re.M | re.S)


def commands(section: str) -> list[str]:
    """Return the lines of a section's console blocks."""
    return [line for block in COMMANDS.findall(section) for line in block.splitlines() if line]


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_runs_as_printed(title: str, tmp_path: Path) -> None:
    for name, text in FILE.findall(SECTIONS[title]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {**os.environ, "MLRUN_PACKAGES": "mylab", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    assert commands(SECTIONS[title])
    for line in commands(SECTIONS[title]):
        program, *words = shlex.split(line)
        assert program == "mlrun"
        run = [sys.executable, "-m", "mlrun", *words]
        done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (folder,) = [Path(word.removeprefix("run=")) for word in words if word.startswith("run=")]
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        assert summary["status"] == "finished" and summary["val_loss"] > 0


def test_every_part_that_can_be_added_has_an_example() -> None:
    parts = ("model", "coarsening", "growth method", "cycle", "method")
    parts += ("data source", "optimizer", "evaluation", "logger")
    assert {title.split(" ", 1)[1] for title in SECTIONS} == set(parts)


@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_is_about_thirty_lines(title: str) -> None:
    assert sum(len(text.splitlines()) for _, text in FILE.findall(SECTIONS[title])) <= 60
