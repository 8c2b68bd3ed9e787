"""The command `mlrun`, called in this process as a shell would call it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from mlrun import __main__


@dataclass
class Outcome:
    """How a command ended: exit code, and the lines on standard output and error."""

    code: int
    out: list[str]
    err: list[str]


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    """Return how `mlrun` with these arguments ended in the working folder."""
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mlrun", *arguments])
        try:
            __main__.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    out, err = capfd.readouterr()
    return Outcome(code, out.splitlines(), err.splitlines())
