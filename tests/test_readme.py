"""What the README tells a newcomer to type is understood: every command composes, plans, or names what exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import mlrun
from mlrun.cli import command, points, tasks
from mlrun.config.load import load
from mlrun.plan.make import make_plan

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Examples of classes of one's own need their files: test_extending.py runs them.
OF_THE_CORE = [page for page in PAGES if page.name != "extending.md"]
BLOCK = re.compile(r"^```console\n(.*?)^```|^((?:    .*\n)+)", re.MULTILINE | re.DOTALL)


def lines() -> list[str]:
    """Return every line of every code block, comments cut off."""
    blocks = [part for page in OF_THE_CORE for match in BLOCK.findall(page.read_text()) for part in match]
    return [line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def arguments(line: str) -> list[str] | None:
    """Return the arguments of an `mlrun` command line, None if it is something else."""
    words = shlex.split(line)
    if words[0] == "mlrun":
        return words[1:]
    return words[words.index("mlrun") + 1 :] if words[0] == "torchrun" else None


COMMANDS = sorted({line for line in lines() if line.split()[0] in ("mlrun", "torchrun")})


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes_and_plans(line: str) -> None:
    words = arguments(line)
    assert words is not None
    for point in points.of(command.read(words)):
        assert point.settings.task in tasks.TASKS
        if point.settings.task in ("train", "plan"):
            assert make_plan(load(point.settings), sources=False).steps > 0


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 8


def test_every_make_target_exists() -> None:
    made = {word for line in lines() if line.startswith("make ") for word in line.split()[1:]}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= made <= targets


def test_the_demo_stays_short() -> None:
    """Its minutes go with its FLOPs: 3.6 budgets take some five on two cores, and its control 0.4 of one."""
    runs = re.search(r"experiment=(demo_\S+)", (ROOT / "Makefile").read_text())
    assert runs is not None
    plans = {name: mlrun.plan([f"experiment={name}"]) for name in runs[1].split(",")}
    budget = plans["demo_scratch"].budget_flops
    assert sum(plan.total.flops for plan in plans.values()) < 3.7 * budget
    assert plans["demo_small"].total.flops < 0.41 * budget
