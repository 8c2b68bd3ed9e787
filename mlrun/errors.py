"""A user's mistake is one line: key, value given, values allowed, what to do. Exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """One or more mistakes of the user; each problem is one printable line.

    `common`: every process of the run raises it, so that one of them tells.
    """

    common = False

    def __init__(self, problems: str | Iterable[str]) -> None:
        given = [problems] if isinstance(problems, str) else problems
        self.problems = [" ".join(problem.splitlines()) for problem in given]
        super().__init__("\n".join(self.problems))


class InUse(UserError):
    """Another process holds the run folder: nothing may be written there."""


# What YAML and the command line call these.
_YAML = {"None": "null", "True": "true", "False": "false"}


def mistake(key: str, given: object, allowed: str, remedy: str) -> str:
    """Return the one line that describes a wrong value."""
    return f"{key}={shown(given)}: allowed: {allowed}; {remedy}"


def shown(given: object) -> str:
    """Return a value as the command line and files write it."""
    return _YAML.get(repr(given), str(given))


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ' (did you mean X?)' when one of `known` resembles `name`, else ''."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def mistakes(prefix: str, checks: Iterable[tuple[str, object, bool, str]]) -> list[str]:
    """Return a line for each of `checks` that is not fine: (key, value given, whether it is fine, values allowed)."""
    return [
        mistake(f"{prefix}{key}", given, allowed, "correct the value")
        for key, given, fine, allowed in checks
        if not fine
    ]
