"""The classes that the choices of groups name in `_target_` (see `GROUPS`, `LISTS`): found, checked, and built."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mlrun.config.settings import complete, leaves, reason, unknown
from mlrun.errors import UserError, mistake
from mlrun.own import PACKAGE, beside, hold

PACKAGES_VARIABLE = "MLRUN_PACKAGES"
# What a class has that serves in a group, by which it is told from those of the others.
SERVES = {
    "model": ("axes", "objective", "params", "flops", "forward"),
    "coarsening": ("resize", "merges"),
    "growth": ("grow", "inexact"),
    "data": ("open", "targets"),
    "optimizer": ("build", "state_bytes"),
    "logger": ("start", "problems"),
    "evaluation": ("applies", "measure"),
}
# What a class of a group is like that need not inherit from one of ours.
PROTOCOLS = {"logger": "mlrun.log.sink.Logger"}


def allowed_packages() -> list[str]:
    """Return the packages whose classes a `_target_` may name: ours, and those in $MLRUN_PACKAGES."""
    extra = os.environ.get(PACKAGES_VARIABLE, "")
    return [PACKAGE, *(name.strip() for name in extra.split(",") if name.strip())]


def within(module: str, packages: Iterable[str]) -> bool:
    """Return whether a module is one of the packages, or in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def found_class(path: str, key: str, packages: Sequence[str]) -> type:
    """Return the class under a dotted name; UserError if it is missing, no class, or not defined in the packages.

    A module of ours holds what it imports too, such as `os`: where the class was defined decides, and nothing that
    lies outside of the packages is imported to find out.
    """
    module, _, name = path.rpartition(".")
    remedy = f"add its package to the environment variable {PACKAGES_VARIABLE} if you trust it"
    if not within(module, packages):
        raise UserError(mistake(key, path, ", ".join(packages), remedy))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise UserError(mistake(key, path, "an importable class", f"{error}")) from None
    if not inspect.isclass(found):
        raise UserError(mistake(key, path, "a class, such as a dataclass", "name the class that is to be made"))
    if not within(found.__module__, packages):
        origin = f"it comes from {found.__module__}: {remedy}"
        raise UserError(mistake(key, path, f"a class defined in {', '.join(packages)}", origin))
    return found


def locate(path: str, key: str) -> type:
    """Return the dataclass that a `_target_` names; UserError if it is foreign, missing or no dataclass."""
    found = found_class(path, f"{key}._target_", allowed_packages())
    if not is_dataclass(found):
        raise UserError(mistake(f"{key}._target_", path, "a dataclass", "name the class that the group builds"))
    # A dataclass by what it inherits alone would refuse its own settings.
    own = [name for name, kind in inspect.get_annotations(found).items() if "ClassVar" not in str(kind)]
    if own and "__dataclass_fields__" not in found.__dict__:
        remedy = f"its settings ({', '.join(own)}) are none yet: put @dataclass(frozen=True) above it"
        raise UserError(mistake(f"{key}._target_", path, "a dataclass of its own", remedy))
    return found


def build(node: DictConfig, key: str) -> Any:
    """Return the object that a `_target_` group describes; names and types are those of its class."""
    if "_target_" not in node:
        remedy = f"copy it from a file in conf/{key.partition('.')[0]}"
        raise UserError(mistake(f"{key}._target_", "missing", "a class", remedy))
    found = locate(str(node["_target_"]), key)
    serves(found, key)
    held(found, key)
    complete(OmegaConf.to_container(node), f"{key}.")
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    if foreign := unknown(given, found, f"{key}."):
        raise UserError(foreign)
    return _typed(found, given, key)


def literal(values: Mapping[str, Any], where: Path) -> DictConfig:
    """Return what a file that others may have written says, to build from; UserError if it refers to anything.

    A `${oc.env:...}` in it would put a secret of this machine into what is told.
    """
    if refers := [f"{key}={value}" for key, value in leaves(values) if "${" in str(value)]:
        raise UserError(f"{where}: {refers[0]}: allowed: values without ${{...}}; write the value itself")
    return OmegaConf.create(dict(values))


def held(found: type, key: str) -> None:
    """Make a class of somebody else's, and those that it works with, keep to ours (`mlrun.own`); UserError if not."""
    group = _group(key)
    base = found_class(PROTOCOLS[group], key, [PACKAGE]) if group in PROTOCOLS else None
    hold(found, group, base)
    for one in beside(found):
        # A choice of a group is held where it is named.
        if not any(all(hasattr(one, name) for name in names) for names in SERVES.values()):
            hold(one, group)


def _group(key: str) -> str:
    return "growth" if key.startswith("cycle.auto.probe") else key.partition(".")[0]


def serves(found: type, key: str) -> None:
    """Raise UserError for a class of another group, which would fail only when it is used."""
    group = _group(key)
    if lacking := [name for name in SERVES.get(group, ()) if not hasattr(found, name)]:
        allowed = f"a class that serves as {group}: it has {', '.join(SERVES[group])}"
        given = f"{found.__module__}.{found.__qualname__}"
        raise UserError(mistake(f"{key}._target_", given, allowed, f"this one has no {lacking[0]}; name another"))


def _typed(found: type, given: Mapping[str, Any], key: str) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(found), OmegaConf.create(dict(given))))
    except OmegaConfBaseException as error:
        name = error.full_key or ""
        if isinstance(error, MissingMandatoryValue):
            raise UserError(mistake(f"{key}.{name}", "missing", "a value", f"give {key}.{name}=...")) from None
        shown = OmegaConf.select(OmegaConf.create(dict(given)), name, default="missing")
        line = mistake(f"{key}.{name}", shown, reason(error), "correct the value")
        raise UserError(line) from None
