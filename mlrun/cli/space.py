"""The space that a search looks in: which values a key may take, in the words of a sweep, by method. No optuna here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from mlrun.cli.command import parsed
from mlrun.errors import UserError, mistake
from mlrun.files import SEARCH, read_json
from mlrun.plan.check import COUNT, SEEDS

# Digits of a drawn number: more tell no settings apart, and names of folders stay short.
DIGITS = 3


@dataclass(frozen=True)
class Dimension:
    """One key: `choices` as they are written, or numbers from `low` to `high`, even in their logarithm if `log`."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def override(self, value: Any) -> str:
        """Return the override that gives the key a drawn value."""
        return f"{self.key}={value if self.choices or self.whole else format(value, f'.{DIGITS}g')}"

    @property
    def ends(self) -> tuple[str, ...]:
        """Return an override for each choice, or for the two ends: what must compose before any work."""
        values: Sequence[Any] = self.choices or (self.low, self.high)
        return tuple(self.override(int(value) if self.whole else value) for value in values)


@dataclass(frozen=True)
class Search:
    """What a search is asked for: as many trials of each method, and the seeds that its choices are reported on."""

    trials: int
    at_a_time: int
    seed: int
    report_seeds: tuple[int, ...]
    methods: Mapping[str, tuple[Dimension, ...]]
    fixed: tuple[str, ...]

    def probes(self, method: str) -> list[tuple[str, ...]]:
        """Return the points of a method that show every value that can be wrong: one key after the other varied."""
        dimensions = self.methods[method]
        first = [dimension.ends[0] for dimension in dimensions]
        varied = [(*first[:i], end, *first[i + 1 :]) for i, d in enumerate(dimensions) for end in d.ends[1:]]
        return [(*self.fixed, f"method={method}", *point) for point in [tuple(first), *varied]]


def search(node: DictConfig, overrides: Sequence[Override], seed: int) -> Search:
    """Return the search that Hydra's sweeper section and the command line ask for; UserError with all that is wrong.

    A sweep on the command line is a key of the space, for all methods; what is set there is set for all.
    """
    given = OmegaConf.to_container(node, resolve=True)
    assert isinstance(given, dict)
    task = [o for o in overrides if not o.is_hydra_override()]
    if lines := _problems(given, seed, [o for o in task if o.key_or_group == "method"]):
        raise UserError(lines)
    told = {o.get_key_element(): o for o in task}
    methods = {}
    for method, own in given["methods"].items():
        texts = [f"{key}={value}" for key, value in {**(given["space"] or {}), **(own or {})}.items()]
        wanted = {o.get_key_element(): o for o in parsed(texts)} | told
        methods[str(method)] = tuple(_dimension(o) for o in wanted.values() if o.is_sweep_override())
    fixed = tuple(str(o.input_line) for o in task if not o.is_sweep_override())
    seeds = tuple(given["report_seeds"])
    return Search(given["trials"], given["at_a_time"], given["seed"], seeds, methods, fixed)


def _problems(given: Mapping[Any, Any], seed: int, methods: Sequence[Override]) -> list[str]:
    lines, prefix = [], "hydra.sweeper."
    for key in ("trials", "at_a_time"):
        if given[key] < 1:
            lines.append(mistake(prefix + key, given[key], COUNT, "correct the value"))
    if given["seed"] not in range(2**32):
        lines.append(mistake(f"{prefix}seed", given["seed"], "an integer from 0 to 2^32 - 1", "correct the value"))
    seeds = given["report_seeds"]
    if not seeds or len(set(seeds)) < len(seeds) or seed in seeds or any(s not in SEEDS for s in seeds):
        allowed = f"seeds, each once, without seed={seed} of the search"
        lines.append(mistake(f"{prefix}report_seeds", seeds, allowed, "what chose the settings may not judge them"))
    if not given["methods"]:
        lines.append(mistake(f"{prefix}methods", given["methods"], "choices of the group method", "add scratch: {}"))
    if methods:
        remedy = "the search tries each of them: give ~hydra.sweeper.methods.NAME to leave one out"
        lines.append(mistake("method", methods[0].value(), f"none beside {prefix}methods", remedy))
    return lines


def _dimension(o: Override) -> Dimension:
    """Return what an override sweeps over; a list, choice, range or glob counts as choices."""
    key, value = str(o.key_or_group), o.value()
    if not isinstance(value, IntervalSweep):
        return Dimension(key, tuple(o.sweep_string_iterator()))
    low, high = value.start, value.end
    log, whole = "log" in value.tags, "int" in value.tags
    if low is None or high is None or not low < high or (log and low <= 0):
        allowed = "interval(LOW, HIGH) with LOW < HIGH, and above 0 with tag(log, ...)"
        raise UserError(f"{o.input_line}: allowed: {allowed}; correct the value")
    return Dimension(key, (), float(low), float(high), log, whole)


def begun(folder: Path, wanted: Mapping[str, Any]) -> list[str]:
    """Return a line if a folder holds another search; more trials and other report seeds belong to the same."""
    path = folder / SEARCH
    if not path.exists():
        return []
    there = read_json(path)
    apart = [key for key in wanted if there.get(key) != wanted[key]]
    remedy = f"choose another run=..., or undo what differs: {', '.join(apart)}"
    return [mistake("run", folder, "a new folder, or the search that it was begun with", remedy)] if apart else []
