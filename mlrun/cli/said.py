"""What somebody gave: the words of a command line, and the values that diffs of their own put on the settings.

A file of one's own that is a choice of a group, such as an optimizer, is like those of the project: it has a value for
every key, read or not. A diff (`# @package _global_`: an experiment, a method, a scale) says what it says on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mlrun.config.load import Config, conf_dir
from mlrun.config.settings import leaves
from mlrun.files import read_yaml
from mlrun.plan import unused
from mlrun.plan.stages import Plan
from mlrun.plan.unused import Idle, Said

DIFF = "# @package _global_"
# What a text refers to.
_REFERENCE = re.compile(r"\$\{([\w.]+)")
# Keys that do nothing but where others refer to them; the rates of a scale are for the grid of an experiment.
REFERRED = {
    "cycle.lengths": "no row of cycle.stages refers to it",
    "scale": "nothing here refers to it: the grids of experiment/ do",
}
GRID_ALONE = "scale.rates"
# Set for a run whose sweep was judged as a whole: what it says may be for the others.
JUDGED = "MLRUN_SWEEP_IS_JUDGED"


def given(overrides: Sequence[str], own: Mapping[str, Said]) -> dict[str, Said]:
    """Return what the user gave, by key; `own` is that of the diffs, of which `~key` takes one away."""
    away = {text.lstrip("~").partition("=")[0] for text in overrides if text.startswith("~")}
    return {key: said for key, said in own.items() if key not in away} | words(overrides)


def words(overrides: Sequence[str]) -> dict[str, Said]:
    """Return what overrides give, by key; one that takes something away gives nothing."""
    return {key: Said(value) for text in overrides if not text.startswith("~") for key, value in _leaves(text)}


@cache
def _leaves(text: str) -> tuple[tuple[str, Any], ...]:
    """Return the keys of an override with their values; a mapping gives all that is in it."""
    key, _, value = text.lstrip("+").partition("=")
    group = key.partition("@")[0]
    if not value.startswith("{"):
        return ((group, value[1:-1] if value[:1] == value[-1:] == "'" else value),)
    given = OverridesParser.create().parse_override(text).value()
    assert isinstance(given, dict)
    return tuple((f"{group}.{below}", one) for below, one in leaves(given))


def diffs(hydra: DictConfig) -> dict[str, Said]:
    """Return what the chosen diffs give that lie in the user's own folders, by key."""
    folders = [Path(one.path) for one in hydra.runtime.config_sources if one.schema == "file"]
    chosen = [(group, str(name)) for group, name in hydra.runtime.choices.items() if not group.startswith("hydra/")]
    files = [folder / group / f"{name}.yaml" for folder in folders if folder != conf_dir() for group, name in chosen]
    return {key: said for file in files if file.is_file() for key, said in _file(file)}


def _file(path: Path) -> Iterator[tuple[str, Said]]:
    """Yield what a diff gives, that of the files of its group that it builds on first."""
    if not path.read_text(encoding="utf-8").startswith(DIFF):
        return
    own = read_yaml(path)
    for base in own.pop("defaults", []):
        if isinstance(base, str) and (file := path.with_name(f"{base}.yaml")).is_file():
            yield from _file(file)
    own.pop("hydra", None)
    yield from ((key, Said(value, str(path))) for key, value in leaves(own))


def idle(settings: DictConfig, config: Config, plan: Plan, said: Mapping[str, Said]) -> dict[str, Idle]:
    """Return each key given that can have no effect in this run; the settings are those before their references."""
    return unused.found(config, plan, said) | {key: Idle(why) for key, why in _unreferred(settings, said)}


def noted(plan: Plan, said: Mapping[str, Said], found: Mapping[str, Idle]) -> Plan:
    """Return the plan with a note on each value that does nothing."""
    return replace(plan, notes=(*plan.notes, *(unused.note(key, said[key], one.why) for key, one in found.items())))


def _unreferred(settings: DictConfig, said: Mapping[str, Said]) -> Iterator[tuple[str, str]]:
    """Yield each key given that does nothing where no other refers to it, as none does here."""
    asked = {key: why for key in said for top, why in REFERRED.items() if key.startswith(f"{top}.")}
    # A scale's file is for all of its runs, of a grid or not.
    asked = {key: why for key, why in asked.items() if not (said[key].file and key.startswith("scale."))}
    if "experiment" in said:
        asked = {key: why for key, why in asked.items() if not key.startswith(GRID_ALONE)}
    if not asked:
        return
    plain = OmegaConf.to_container(settings)
    assert isinstance(plain, dict)
    written = leaves({str(key): value for key, value in plain.items()})
    referred = {name for _, value in written for name in _REFERENCE.findall(str(value))}
    yield from ((key, why) for key, why in asked.items() if not _referred(key, referred))


def _referred(key: str, found: Iterable[str]) -> bool:
    """Return whether a key, what it is in or what is in it is referred to."""
    return any(name == key or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in found)
