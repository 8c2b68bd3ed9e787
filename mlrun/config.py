"""The settings of a run: dataclasses that Hydra checks, and the typed `Config` that the plan reads. No torch here.

Groups with a `_target_` (model, coarsening, growth, data, logger) are checked against the class that they name.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlrun.errors import UserError, mistake, nearest

# What a `${...}` may raise when it is read.
REFERENCE_ERRORS = (OmegaConfBaseException, RecursionError)
PACKAGES_VARIABLE = "MLRUN_PACKAGES"
# The groups that name a class in `_target_`.
GROUPS = ("model", "coarsening", "growth", "data", "logger")

CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("train", "plan", "report", "evaluate", "export", "import", "coalesce", "decoalesce", "interpolate"),
    "cycle.optimizer_policy": ("reset", "carry"),
    "cycle.lr_policy": ("restart", "continue", "rewarm"),
    "on_divergence": ("stop", "skip"),
    "optimizer.schedule.shape": ("constant", "cosine", "linear", "wsd"),
    "hardware.device": ("cpu", "cuda"),
    "hardware.precision": ("fp32", "bf16"),
    "hardware.sharding": ("none", "fsdp"),
}


@dataclass
class Row:
    """One stage of a cycle as written in YAML."""

    level: int = MISSING
    length: str = MISSING
    alpha: float | None = None


@dataclass
class Cycle:
    """The schedule over levels."""

    name: str = MISSING
    lengths: dict[str, str] = field(default_factory=dict)
    stages: list[Row] = MISSING
    alpha: float = 0.5
    noise: float = 0.0
    lr_scale: list[float] = field(default_factory=list)
    optimizer_policy: str = "reset"
    lr_policy: str = "restart"
    branches: list[str] = field(default_factory=list)


@dataclass
class Schedule:
    """The learning rate over a span of steps."""

    shape: str = "cosine"
    warmup: str = "5%"
    decay: str = "20%"
    floor: float = 0.1


@dataclass
class Optimizer:
    """AdamW and what goes with it."""

    lr: float = MISSING
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0
    ema: float | None = None
    schedule: Schedule = field(default_factory=Schedule)


@dataclass
class Hardware:
    """How fast, never how well: nothing here may move the loss, but for which values are dropped (see `dropout`)."""

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    micro_batch: int | None = None
    sharding: str = "none"
    activation_checkpointing: bool = False
    threads: int | None = None
    flops_per_second: float | None = None


@dataclass
class Eval:
    """When the held-out set is read."""

    every: str = "5%"
    batch: int = 32


@dataclass
class Checkpoint:
    """When the run's state is saved."""

    every: str = "10%"


@dataclass
class Settings:
    """Everything a run is made of, as Hydra sees it."""

    task: str = "train"
    run: str | None = None
    runs: str | None = None
    init: str | None = None
    init_flops: str | None = None
    source: str | None = None
    target: str | None = None
    grown: str | None = None
    fine: str | None = None
    name: str = MISSING
    seed: int = 0
    budget: str = MISSING
    batch: int = MISSING
    log_every: int = 10
    on_divergence: str = "stop"
    cache: str = MISSING
    model: Any = MISSING
    coarsening: Any = MISSING
    growth: Any = MISSING
    cycle: Cycle = field(default_factory=Cycle)
    hardware: Hardware = field(default_factory=Hardware)
    data: Any = MISSING
    optimizer: Optimizer = field(default_factory=Optimizer)
    logger: Any = MISSING
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


@dataclass(frozen=True)
class Config:
    """A checked configuration: plain settings, and the objects that the `_target_` groups name."""

    settings: Settings
    model: Any
    coarsening: Any
    growth: Any
    data: Any
    logger: Any
    resolved: dict[str, Any]


def conf_dir() -> Path:
    """Return the folder of the project's YAML files, in a wheel as in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def allowed_packages() -> list[str]:
    """Return the packages whose classes a `_target_` may name: ours, and those in $MLRUN_PACKAGES."""
    extra = os.environ.get(PACKAGES_VARIABLE, "")
    return ["mlrun", *(name.strip() for name in extra.split(",") if name.strip())]


def locate(path: str, key: str) -> type:
    """Return the dataclass that a `_target_` names; UserError if it is foreign, missing or no dataclass."""
    module, _, name = path.rpartition(".")
    if path.partition(".")[0] not in allowed_packages():
        remedy = f"add its package to the environment variable {PACKAGES_VARIABLE} if you trust it"
        raise UserError(mistake(f"{key}._target_", path, ", ".join(allowed_packages()), remedy))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(mistake(f"{key}._target_", path, "an importable class", f"{error}")) from None
    if not (inspect.isclass(found) and is_dataclass(found)):
        raise UserError(mistake(f"{key}._target_", path, "a dataclass", "name the class that the group builds"))
    return found


def build(node: DictConfig, key: str) -> Any:
    """Return the object that a `_target_` group describes; names and types are those of its class."""
    if "_target_" not in node:
        raise UserError(mistake(f"{key}._target_", "missing", "a class", f"copy it from a file in conf/{key}"))
    found = locate(str(node["_target_"]), key)
    known = [f.name for f in fields(found)]
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    unknown = [n for n in given if n not in known]
    if unknown:
        allowed = ", ".join(known) or "no setting"
        raise UserError([mistake(f"{key}.{n}", given[n], allowed, f"remove it{nearest(n, known)}") for n in unknown])
    return _typed(found, given, key)


def _typed(found: type, given: Mapping[str, Any], key: str) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(found), OmegaConf.create(dict(given))))
    except OmegaConfBaseException as error:
        name = error.full_key or ""
        line = mistake(f"{key}.{name}", given.get(name, "missing"), reason(error), "correct the value")
        raise UserError(line) from None


def reason(error: Exception) -> str:
    """Return the first line of an error, which is its reason; OmegaConf adds its own view of the key below."""
    return str(error).strip().partition("\n")[0]


def load(settings: DictConfig) -> Config:
    """Return the checked configuration, or raise UserError with all problems at once."""
    try:
        missing = sorted(OmegaConf.missing_keys(settings))
        if missing:
            raise UserError([mistake(key, "???", "a value of your own", f"give {key}=...") for key in missing])
        plain = OmegaConf.to_container(settings, resolve=True)
    except REFERENCE_ERRORS as error:
        raise UserError(unresolved(error)) from None
    assert isinstance(plain, dict)
    problems = _unknown(plain, Settings, "") + _choice_problems(settings)
    built: dict[str, Any] = {}
    for key in GROUPS:
        if not isinstance(plain[key], dict):
            problems.append(mistake(key, plain[key], "a choice of the group", f"give {key}=NAME"))
            continue
        try:
            built[key] = build(DictConfig(plain[key]), key)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    typed = OmegaConf.to_object(settings)
    assert isinstance(typed, Settings)
    return Config(typed, **built, resolved={str(k): v for k, v in plain.items()})


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
    return mistake(str(getattr(error, "full_key", "")), "${...}", reason(error), "correct the reference")


def _unknown(plain: Mapping[Any, Any], schema: type, prefix: str) -> list[str]:
    """Return a line for each key that `+key=value` or a YAML file added beside those of the schema."""
    known = {f.name: f.default_factory for f in fields(schema)}
    problems = [
        mistake(f"{prefix}{key}", value, ", ".join(known), f"remove it{nearest(str(key), list(known))}")
        for key, value in plain.items()
        if key not in known
    ]
    for key, below in known.items():
        if inspect.isclass(below) and is_dataclass(below):
            problems += _unknown(plain[key], below, f"{prefix}{key}.")
    return problems


def _choice_problems(settings: DictConfig) -> list[str]:
    problems = []
    for key, allowed in CHOICES.items():
        given = OmegaConf.select(settings, key)
        if given not in allowed:
            problems.append(mistake(key, given, ", ".join(allowed), f"choose one{nearest(str(given), allowed)}"))
    return problems
