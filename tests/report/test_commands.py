"""A report says of each run by which command it was made, as a shell takes it."""

from __future__ import annotations

import shlex
from pathlib import Path

import fake_runs as fake

from mlrun.cli.command import override, read, unquoted
from mlrun.report import commands
from mlrun.report.read import read as read_run

# As a sweep hands a path on that has a sign of the language in it.
SWEPT = "run='outputs/0-method=scratch'"
WORDS = ["cycle=2level", SWEPT, "budget=2M tokens", "name=it's $HOME", "run=outputs/a"]


def begun(folder: Path, **start: object) -> Path:
    plan, log = fake.plan(fake.SCRATCH), fake.records(fake.SCRATCH)
    return fake.write(folder, fake.config("scratch"), plan, log, starts=[fake.MACHINE | start])


def test_a_shell_reads_the_command_as_it_was_given(tmp_path: Path) -> None:
    run = read_run(begun(tmp_path / "a", overrides=WORDS))
    told = commands.command(run)
    assert told is not None and shlex.split(told) == ["mlrun", *WORDS]
    assert f'"{SWEPT}"' in told
    remark, line = commands.lines([run])
    assert line == told and all(f"{name} {fake.MACHINE[name]}" in remark for name in ("mlrun", "commit", "torch"))


def test_runs_from_python_and_of_before_say_so(tmp_path: Path) -> None:
    python, older = read_run(begun(tmp_path / "a", overrides=None)), read_run(begun(tmp_path / "b"))
    assert commands.command(python) is commands.command(older) is None
    assert commands.lines([python])[0].endswith(commands.FROM_PYTHON)
    assert commands.lines([older])[0].endswith(commands.OLDER)


def test_paths_lose_the_quotes_that_they_do_not_need() -> None:
    for path in ("outputs/a", "a,b", "null", "a b"):
        kept = unquoted(override("run", path))
        assert read([kept]).overrides[0] == override("run", path)
    assert unquoted(override("run", "outputs/a")) == "run=outputs/a" and unquoted("name='1'") == "name='1'"
