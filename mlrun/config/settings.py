"""The settings of a run: dataclasses that Hydra checks, and what can be wrong with one of them. No torch here."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from mlrun.errors import UserError, mistake, nearest

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
    alone: dict[str, Any] = field(default_factory=dict)
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


# The sections of the settings that are dataclasses themselves.
SECTIONS = tuple(f.name for f in fields(Settings) if is_dataclass(f.default_factory))


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested settings; lists are values."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def reason(error: Exception) -> str:
    """Return what is allowed where an error names a type, else its first line; OmegaConf adds its view of the key."""
    first = str(error).strip().partition("\n")[0]
    return next((plain for theirs, plain in _TYPES.items() if theirs in first), first)


def complete(node: Any, prefix: str) -> None:
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


def unknown(plain: Mapping[Any, Any], schema: type, prefix: str) -> list[str]:
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
            problems += unknown(plain[key], below, f"{prefix}{key}.")
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
