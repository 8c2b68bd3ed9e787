"""What a run that has begun must find as it was, beside settings and data: its plan, and the code of one's own.

Both follow from code that may change while a run is stopped: that of mlrun, and that of a class in MLRUN_PACKAGES.
Steps of two plans, or of two codes, in one run would be nobody's run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlrun.config.choices import allowed_packages, within
from mlrun.config.load import Config
from mlrun.errors import mistake
from mlrun.own import PACKAGE
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan

CODE = "code"
# What plan.json says that decides what is computed, or what it counts for; the rest is told to people.
_LEVEL = ("sizes", "parameters", "flops_per_sample", "flops_per_sample_body", "update_flops", "rates")
_STAGE = (
    "level", "transfer", "alpha", "entry_flops", "lr_scale", "batch", "sequence", "first_step", "steps", "flops",
    "flops_body", "fork",
)  # fmt: skip


def problems(there: Mapping[str, Any], plan: Plan, config: Config, where: Path) -> list[str]:
    """Return a line for a plan.json (`there`, in the file `where`) that says something else than is so now."""
    decides, remedy = config.settings.cycle.auto is not None, "or start a new folder with run=..."
    told = _planned(there, plan, decides, str(where), f"restore the file, or the code that it is from, {remedy}")
    again = f"restore it, {remedy}, or remove {where} if no number changes by that"
    return told or _coded(there.get(CODE, {}), config, again)


def _planned(there: Mapping[str, Any], plan: Plan, decides: bool, where: str, remedy: str) -> list[str]:
    """Return the first difference between two plans; where a run decides, its stages are those of its checkpoint."""
    now = as_dict(plan)
    parts = [("levels", _LEVEL)] + ([("stages", _STAGE)] if not decides else [])
    for part, keys in parts:
        before, after = there.get(part), now[part]
        if not isinstance(before, list) or len(before) != len(after) or not all(isinstance(x, dict) for x in before):
            return [mistake(where, f"other {part}", f"{len(after)} {part}, as this configuration gives", remedy)]
        for number, (old, new) in enumerate(zip(before, after, strict=True), 1):
            if differing := [key for key in keys if old.get(key) != new.get(key)]:
                key = differing[0]
                name = f"{part[:-1]} {number}: {key}"
                given, allowed = (_short(one.get(key)) for one in (old, new))
                return [mistake(f"{where}: {name}", given, f"{allowed}, as is planned now", remedy)]
    return []


def _short(value: Any) -> Any:
    """Return a value for a line, of factors by kind of tensor the factors alone."""
    return [one.get("rate") for one in value] if isinstance(value, list) else value


def _coded(there: Any, config: Config, remedy: str) -> list[str]:
    """Return a line for each module of one's own that is no longer what the run began with."""
    if not isinstance(there, dict) or not there:  # a run of before says nothing of it
        return []
    now = code(config)
    return [
        mistake(name, "changed", "the code that this run began with", remedy)
        for name in sorted({*there, *now})
        if there.get(name) != now.get(name)
    ]


def code(config: Config) -> dict[str, str]:
    """Return the SHA-256 of each module of one's own that computes: those of the classes, and what they import of it.

    Listeners and evaluations move no weight, and may change while a run is stopped.
    """
    parts = (config.model, config.coarsening, config.growth, *config.probes, config.data, config.optimizer)
    packages = [name for name in allowed_packages() if name != PACKAGE]
    wanted = [one.__module__ for part in parts for one in type(part).__mro__]
    found: dict[str, str] = {}
    while wanted:
        name = wanted.pop()
        if name in found or not within(name, packages) or (text := _source(name)) is None:
            continue
        found[name] = hashlib.sha256(text).hexdigest()
        wanted += _imported(text, name)
    return dict(sorted(found.items()))


def _source(name: str) -> bytes | None:
    """Return what the file of a module says; None for what is no module of Python."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    is_file = spec is not None and spec.has_location and str(spec.origin).endswith(".py")
    return Path(str(spec.origin)).read_bytes() if spec is not None and is_file else None


def _imported(text: bytes, name: str) -> Iterator[str]:
    """Yield what may be a module in what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level > 0:
                origin = importlib.util.resolve_name("." * node.level + origin, _package(name))
            yield from _parents(origin)
            yield from (f"{origin}.{one.name}" for one in node.names)


def _package(name: str) -> str:
    spec = importlib.util.find_spec(name)
    return "" if spec is None else (spec.parent or "")


def _parents(name: str) -> Iterable[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
