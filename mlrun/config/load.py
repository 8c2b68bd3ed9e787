"""The typed `Config` that the plan reads, made of settings as Hydra composed them. No torch here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlrun.config.choices import build
from mlrun.config.settings import (
    ALONE,
    ARGUMENTS,
    GROUPS,
    LISTS,
    SECTIONS,
    Settings,
    choice_problems,
    complete,
    reason,
    unknown,
)
from mlrun.errors import UserError, mistake

# What a `${...}` may raise when it is read.
REFERENCE_ERRORS = (OmegaConfBaseException, RecursionError)


@dataclass(frozen=True)
class Config:
    """A checked configuration: plain settings, and the objects that the `_target_` groups name."""

    settings: Settings
    model: Any
    coarsening: Any
    growth: Any
    data: Any
    optimizer: Any
    logger: dict[str, Any]  # by the name of the choice
    evaluation: dict[str, Any]
    resolved: dict[str, Any]
    overrides: tuple[str, ...] | None = None  # of the command that started this, as given; None from Python
    probes: tuple[Any, ...] = ()  # the growths of cycle.auto.probe, in its order


def conf_dir() -> Path:
    """Return the folder of the project's YAML files, in a wheel as in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def load(
    settings: DictConfig,
    shared: dict[tuple[str, str], Any] | None = None,
    constant: Mapping[str, Any] | None = None,
) -> Config:
    """Return the checked configuration, or raise UserError with all problems at once.

    `shared` keeps what many configurations of a sweep have in common from one call to the next. `constant` are sections
    of the settings in plain form, where that is known already; nothing changes them.
    """
    shared = {} if shared is None else shared
    plain = _resolved(settings, constant or {})
    problems = unknown(plain, Settings, "") + choice_problems(plain)

    def made(node: Any, key: str) -> Any:
        try:
            return _once(shared, key, node, partial(_build, node, key))
        except UserError as error:
            problems.extend(error.problems)
            return None

    built = {key: made(plain[key], key) for key in GROUPS}
    for key in LISTS:
        built[key] = {name: made(node, f"{key}.{name}") for name, node in plain[key].items()}
    probes = tuple(made(_probed(plain["growth"], diff), f"cycle.auto.probe.{i}") for i, diff in _probes(plain))
    if problems:
        raise UserError(problems)
    # With the types and the defaults of their classes: 0 and 0.0 are one setting.
    kept = {str(k): v for k, v in plain.items() if k not in (*ARGUMENTS, ALONE)}
    resolved = {k: {**v, **asdict(built[k])} if k in GROUPS else v for k, v in kept.items()}
    sections = {name: _section(settings, name, plain[name], shared) for name in SECTIONS}
    built["optimizer"] = _decaying(built["optimizer"], sections["cycle"].decay)
    return Config(Settings(**{**plain, **sections}), **built, resolved=resolved, probes=probes)


def _probes(plain: Mapping[Any, Any]) -> list[tuple[int, Any]]:
    return list(enumerate((plain["cycle"].get("auto") or {}).get("probe", ())))


def _probed(growth: Any, diff: Mapping[str, Any]) -> Any:
    """Return the growth of one probe: a choice of its own where it names a class, else a diff on that of the run."""
    return diff if "_target_" in diff or not isinstance(growth, Mapping) else {**growth, **diff}


def _decaying(optimizer: Any, decay: str | None) -> Any:
    """Return the optimizer with the cycle's own decay in its schedule, if it has one."""
    return optimizer if decay is None else replace(optimizer, schedule=replace(optimizer.schedule, decay=decay))


def _build(node: Any, key: str) -> Any:
    """Return the object of one choice."""
    if not isinstance(node, dict):
        group = key.partition(".")[0]
        raise UserError(mistake(key, node, "a choice of the group", f"give {group}=NAME"))
    return build(DictConfig(node), key)


def _resolved(settings: DictConfig, constant: Mapping[str, Any]) -> dict[str, Any]:
    """Return all values; UserError for those that are still to be given, or else for a `${...}` that leads nowhere."""
    try:
        found = {key: constant[key] if key in constant else section(settings, key) for key in map(str, settings)}
    except REFERENCE_ERRORS as error:
        complete(OmegaConf.to_container(settings), "")
        raise UserError(unresolved(error)) from None
    complete(found, "")
    return found


def section(settings: DictConfig, key: str) -> Any:
    """Return one section, or a single value, without references."""
    if OmegaConf.is_missing(settings, key):
        return "???"
    value = settings[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _once(shared: dict[tuple[str, str], Any], key: str, plain: Any, make: Callable[[], Any]) -> Any:
    """Return what was made of the same values before, or make it."""
    name = (key, repr(plain))
    if name not in shared:
        shared[name] = make()
    return shared[name]


def _section(settings: DictConfig, name: str, plain: Any, shared: dict[tuple[str, str], Any]) -> Any:
    """Return a section as its dataclass, for this configuration alone."""
    return copy.copy(_once(shared, name, plain, lambda: OmegaConf.to_object(settings[name])))


def reference_problems(settings: DictConfig) -> list[str]:
    """Return a line if a `${...}` leads nowhere; values that are missing may be."""
    try:
        OmegaConf.to_container(settings, resolve=True)
    except REFERENCE_ERRORS as error:
        return [unresolved(error)]
    return []


def unresolved(error: Exception) -> str:
    """Return the line about a value that a `${...}` does not give."""
    if isinstance(error, RecursionError):
        return "${...}: allowed: references that end; one of them leads to itself: give its value"
    if "'scale." in reason(error):
        wanted = reason(error).split("'")[1]
        return (
            f"scale: allowed: a choice that gives {wanted}; the experiment is a grid at a scale: give scale=tiny, ..."
        )
    return mistake(str(getattr(error, "full_key", "")), "${...}", reason(error), "correct the reference")
