"""Reading a foreign config.json: every option is a supported value or a line that says what is supported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlrun.errors import UserError, mistake, shown
from mlrun.models.base import RATES, Model

# What a rate of dropping is called where its own class has no word for it: `transformers` keeps a key that a class does
# not read, and does nothing with it.
NAMES = {"dropout": ("dropout",), "attention_dropout": ("attention_dropout",), "drop_path": ("drop_path_rate",)}

# The keys of a class by our rates; several keys of one rate have one value.
Keys = Mapping[str, tuple[str, ...]]

_REMEDY = "this option has no counterpart here, so the imported model would compute something else"


class Options:
    """A config.json and the problems found in it so far; `done` raises them all at once."""

    def __init__(self, config: Mapping[str, Any], path: Path, also: Mapping[str, str] | None = None) -> None:
        """Take the keys of a config.json; `also` are further names of some of them, which `transformers` reads too."""
        self.config, self.path = dict(config), path
        self.problems: list[str] = []
        for other, key in (also or {}).items():
            value = self.config.setdefault(key, self.config[other]) if other in self.config else None
            if other in self.config and not _same(value, self.config[other]):
                self._wrong(other, self.config[other], f"{shown(value)}, which is {key}", "they are one: remove one")

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a size; absent or null is the default, and without one a problem."""
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            self._wrong(key, value, "an integer of at least 1", "correct the file")
            return 1
        return value

    def number(self, key: str, default: float) -> float:
        """Return a number above 0."""
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self._wrong(key, value, "a number above 0", "correct the file")
            return default
        return float(value)

    def rate(self, key: str, default: float) -> float:
        """Return a probability under 1."""
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            self._wrong(key, value, "a number of at least 0 and under 1", "correct the file")
            return default
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        return bool(self.only(key, (True, False), default))

    def only(self, key: str, allowed: tuple[Any, ...], default: Any) -> Any:
        """Return an option that must be one of `allowed`; `default` is what an absent key means."""
        value = self.config.get(key, default)
        if not any(_same(value, one) for one in allowed):
            self._wrong(key, value, ", ".join(map(shown, allowed)), _REMEDY)
            return allowed[0]
        return value

    def object(self, key: str) -> Options:
        """Return the options of an object below; absent or null is an empty one. Its problems are noted here."""
        value = self.config.get(key)
        if value is not None and not isinstance(value, dict):
            self._wrong(key, value, "an object, or null", "correct the file")
            value = None
        below = Options(value or {}, self.path)
        below.problems = self.problems
        return below

    def wrong(self, key: str, allowed: str) -> None:
        """Note that an option's value is not supported."""
        self._wrong(key, self.config.get(key), allowed, _REMEDY)

    def done(self) -> None:
        """Raise UserError with everything found."""
        if self.problems:
            raise UserError(self.problems)

    def _wrong(self, key: str, value: Any, allowed: str, remedy: str) -> None:
        given = "missing" if value is None else value
        self.problems.append(mistake(f"{self.path}: {key}", given, allowed, remedy))


def _same(value: Any, other: Any) -> bool:
    return bool(value == other and type(value) is type(other))


def write_rates(model: Model, keys: Keys) -> dict[str, float]:
    """Return the part of config.json that says what is dropped."""
    return {key: getattr(model, rate) for rate in RATES for key in (NAMES | dict(keys))[rate]}


def read_rates(options: Options, keys: Keys, absent: Mapping[str, float]) -> dict[str, Any]:
    """Return our rates; `absent` is what the class takes for a key that is not there, 0 where it does not say."""
    rates: dict[str, Any] = {}
    for rate, names in (NAMES | dict(keys)).items():
        found = {name: options.rate(name, absent.get(rate, 0.0)) for name in names}
        rates[rate] = found[names[0]]
        for name in names[1:]:
            if found[name] != rates[rate]:
                options.wrong(name, f"{rates[rate]}, which is {names[0]}")
    return rates
