"""The settings of a run: dataclasses that Hydra checks, and the typed `Config` that the plan reads. No torch here.

Groups with a `_target_` (see `GROUPS`, `LISTS`) are checked against the class that they name.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mlrun.errors import UserError, mistake, nearest
from mlrun.own import PACKAGE, beside, hold

# What a `${...}` may raise when it is read.
REFERENCE_ERRORS = (OmegaConfBaseException, RecursionError)
PACKAGES_VARIABLE = "MLRUN_PACKAGES"
# The groups that name a class in `_target_`.
GROUPS = ("model", "coarsening", "growth", "data", "optimizer")
# What becomes a model and a budget before anything is planned (`mlrun.plan.alone`): a run keeps those.
ALONE = "alone"
# The groups whose choice may be a list, such as logger=[wandb,tensorboard]: each file gives one object, under its name.
LISTS = ("logger", "evaluation")
# Arguments of a task or of a grid, no part of what a run is made of.
ARGUMENTS = ("runs", "results", "watch", "source", "target", "data_licence", "grown", "fine", "scale", "sample")

CHOICES: dict[str, tuple[str, ...]] = {
    "cycle.optimizer_policy": ("reset", "carry"),
    "cycle.lr_policy": ("restart", "continue", "rewarm"),
    "on_divergence": ("stop", "skip"),
    "optimizer.schedule.shape": ("constant", "cosine", "linear", "wsd"),
    "find.objective": ("loss", "flops"),
    "hardware.device": ("auto", "cpu", "cuda"),
    "hardware.precision": ("auto", "fp32", "bf16"),
    "hardware.sharding": ("none", "fsdp"),
}
# What OmegaConf says of a value of another type, and what that means to who wrote it.
_TYPES = {
    "is not a ListConfig": "a list in brackets, such as [a,b]",
    "could not be converted to Integer": "a whole number",
    "could not be converted to Float": "a number",
    "is not a valid bool": "true, false",
    "is not Optional": "a value other than null",
}
# What others call a choice, where another choice is spelt more like it.
_MEANT = {"gpu": "cuda"}


@dataclass
class Row:
    """One stage of a cycle as written in YAML."""

    level: int = MISSING
    length: str = MISSING
    alpha: float | None = None
    batch: int | None = None
    sequence: int | None = None


@dataclass
class Auto:
    """How a run decides where its stages of length `auto` end."""

    mixing: str = "20%"
    early: float = 0.5
    probe: list[dict[str, Any]] = field(default_factory=list)
    probe_length: str = "1%"


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
    layer_dropout: float = 0.0
    decay: str | None = None
    branches: list[str] = field(default_factory=list)
    auto: Auto | None = None


@dataclass
class Schedule:
    """The learning rate over a span of steps."""

    shape: str = "cosine"
    warmup: str = "5%"
    decay: str = "20%"
    floor: float = 0.1


@dataclass
class Hardware:
    """How fast, never how well: nothing here may move the loss, but for which values are dropped (see `dropout`).

    `auto` is replaced on the machine that runs (see `mlrun.cli.device`), but for `micro_batch` on a GPU.
    """

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool | str = False
    micro_batch: int | str | None = None
    sharding: str = "none"
    activation_checkpointing: bool = False
    threads: int | None = None
    workers: int | str = "auto"
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
class Find:
    """What a sweep that looks for the best settings wants of its runs; nothing here moves a loss."""

    objective: str = "loss"
    objective_loss: float | None = None
    prune: float | None = None
    prune_after: int = 4


@dataclass
class Scale:
    """What the grids of conf/experiment take from conf/scale; nothing of a run by itself."""

    alpha: float = MISSING
    endings: list[str] = field(default_factory=list)
    rates: dict[str, str] = field(default_factory=dict)


@dataclass
class Sample:
    """What task=sample asks of a model; nothing of a run."""

    prompt: str | None = None
    image: str | None = None
    tokens: int = 100
    temperature: float = 1.0
    top_k: int | None = None
    file: str | None = None


@dataclass
class Settings:
    """Everything a run is made of, as Hydra sees it."""

    task: str = "train"
    run: str | None = None
    runs: str | None = None
    results: str | None = None
    watch: bool = False
    init: str | None = None
    init_flops: str | None = None
    source: str | None = None
    target: str | None = None
    data_licence: str | None = None
    grown: str | None = None
    fine: str | None = None
    name: str = MISSING
    seed: int = 0
    budget: str = MISSING
    alone: dict[str, int] = field(default_factory=dict)
    batch: int = MISSING
    log_every: int = 10
    health: bool = False
    on_divergence: str = "stop"
    cache: str = MISSING
    model: Any = MISSING
    coarsening: Any = MISSING
    growth: Any = MISSING
    cycle: Cycle = field(default_factory=Cycle)
    hardware: Hardware = field(default_factory=Hardware)
    data: Any = MISSING
    optimizer: Any = MISSING
    logger: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    find: Find = field(default_factory=Find)
    sample: Sample = field(default_factory=Sample)
    scale: Scale | None = None
    recipe: str | None = None


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

# The sections of the settings that are dataclasses themselves.
SECTIONS = tuple(f.name for f in fields(Settings) if is_dataclass(f.default_factory))


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
    package = Path(__file__).resolve().parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


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
    _complete(OmegaConf.to_container(node), f"{key}.")
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    if unknown := _unknown(given, found, f"{key}."):
        raise UserError(unknown)
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


def reason(error: Exception) -> str:
    """Return what is allowed where an error names a type, else its first line; OmegaConf adds its view of the key."""
    first = str(error).strip().partition("\n")[0]
    return next((plain for theirs, plain in _TYPES.items() if theirs in first), first)


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
    problems = _unknown(plain, Settings, "") + choice_problems(plain)

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


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested settings; lists are values."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _resolved(settings: DictConfig, constant: Mapping[str, Any]) -> dict[str, Any]:
    """Return all values; UserError for those that are still to be given, or else for a `${...}` that leads nowhere."""
    try:
        found = {key: constant[key] if key in constant else section(settings, key) for key in map(str, settings)}
    except REFERENCE_ERRORS as error:
        _complete(OmegaConf.to_container(settings), "")
        raise UserError(unresolved(error)) from None
    _complete(found, "")
    return found


def section(settings: DictConfig, key: str) -> Any:
    """Return one section, or a single value, without references."""
    if OmegaConf.is_missing(settings, key):
        return "???"
    value = settings[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _complete(node: Any, prefix: str) -> None:
    """Raise UserError for every value that is still to be given."""
    missing = sorted(f"{prefix}{key}" for key in _missing(node, ""))
    if missing:
        raise UserError([mistake(key, "???", "a value of your own", f"give {key}=...") for key in missing])


def _missing(node: Any, path: str) -> Iterator[str]:
    """Yield the key of every value that is still to be given."""
    items = enumerate(node) if isinstance(node, list) else node.items()
    for key, value in items:
        below = f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}" if path else str(key)
        if value == "???":
            yield below
        elif isinstance(value, dict | list):
            yield from _missing(value, below)


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


def _unknown(plain: Mapping[Any, Any], schema: type, prefix: str) -> list[str]:
    """Return a line for each key that `+key=value` or a YAML file added beside those of the schema."""
    known = {f.name: f.default_factory for f in fields(schema)}
    allowed = ", ".join(known) or "no setting"
    problems = [
        mistake(f"{prefix}{key}", value, allowed, f"remove it{nearest(str(key), list(known))}")
        for key, value in plain.items()
        if key not in known
    ]
    for key, below in known.items():
        if key not in plain or not (inspect.isclass(below) and is_dataclass(below)):
            continue
        if isinstance(plain[key], Mapping):
            problems += _unknown(plain[key], below, f"{prefix}{key}.")
        else:
            names = ", ".join(f"{prefix}{key}.{f.name}" for f in fields(below))
            problems.append(mistake(f"{prefix}{key}", plain[key], names, "give one of these"))
    return problems


def choice_problems(plain: Mapping[Any, Any]) -> list[str]:
    """Return a line for each of the settings in CHOICES that has another value."""
    problems = []
    for key, allowed in CHOICES.items():
        given: Any = plain
        for part in key.split("."):
            given = given.get(part) if isinstance(given, dict) else None
        if given is not None and given not in allowed:  # what a group leaves out has the default of its class
            meant = nearest(_MEANT.get(given, str(given)), allowed)
            problems.append(mistake(key, given, ", ".join(allowed), f"choose one{meant}"))
    return problems
