"""What somebody meant whose word is no KEY=VALUE: a task, a key, or a setting with dashes in front."""

from __future__ import annotations

import re
from dataclasses import fields

from mlrun.cli.blame import PACKAGELESS
from mlrun.cli.tasks import TASKS
from mlrun.config.settings import Settings
from mlrun.errors import nearest

# What stands in front of the first equal sign of a setting; the last two are groups that leave no key behind.
KEYS = (*(field.name for field in fields(Settings)), *PACKAGELESS)


def word(text: str) -> str:
    """Return what to type in place of a word without an equal sign; '' for one that is like nothing known."""
    close = nearest(text, list(TASKS))
    known = {
        "mlrun --help says what there is": text.lower() == "help",
        f"a task is asked for by task={text}": text in TASKS,
        f"write {text}=VALUE, without blanks": _is_key(text),
        f"write {text.replace(':', '=', 1)}": _is_key(text.partition(":")[0]),
        f"a folder is named by its key, such as run={text}": "/" in text,
        f"a task is asked for by task=NAME{close}": close,
        "a value stands behind its key and an equal sign: seed=1": re.fullmatch(r"[\w.+-]+", text),
    }
    return next((line for line, meant in known.items() if meant), "")


def flag(text: str) -> str:
    """Return what to type in place of a flag that there is not, such as `seed=1` for `--seed=1`; '' if unknown."""
    key, equal, value = text.lstrip("-").partition("=")
    return f"settings have no dashes: {key}={value if equal else 'VALUE'}" if _is_key(key) else ""


def _is_key(text: str) -> bool:
    return text.partition(".")[0] in KEYS
