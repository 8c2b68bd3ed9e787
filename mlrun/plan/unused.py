"""What can have no effect in a composed run: a table of keys, each with where it has none. No torch here.

A value that somebody gave for such a key is a mistake: one line, before any work. What a baseline and its methods share
(how a cycle's transfers go) is no mistake where a cycle has no transfer: the plan says so in a note. Values of the
shipped files may stand unused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from mlrun.config.choices import within
from mlrun.config.load import Config
from mlrun.config.settings import Cycle
from mlrun.errors import mistake, shown
from mlrun.models.axes import DEPTH
from mlrun.own import PACKAGE
from mlrun.plan.stages import Plan


class Said(NamedTuple):
    """A value that somebody gave, and the file that it stands in; '' is the command line."""

    value: Any
    file: str = ""


@dataclass(frozen=True)
class Rule:
    """Where a key, or all keys below it, can have no effect; `why` says so in words.

    of: the classes of the project that the key is one of, by name; () for keys of no class. A class of somebody else's
        may mean something else by the same word.
    shared: what a baseline and its methods are given alike, and so no mistake.
    """

    key: str
    idle: Callable[[Config, Plan], bool]
    why: str
    of: tuple[str, ...] = ()
    shared: bool = False

    def concerns(self, key: str) -> bool:
        """Return whether the rule is about a key that was given."""
        return key == self.key or key.startswith(f"{self.key}.")

    def holds(self, config: Config, plan: Plan) -> bool:
        """Return whether the key has no effect here."""
        fits = not self.of or _is(getattr(config, self.key.partition(".")[0]), self.of)
        return fits and self.idle(config, plan)


def _is(part: Any, names: tuple[str, ...]) -> bool:
    """Return whether an object is of one of the project's classes."""
    return type(part).__name__ in names and within(type(part).__module__, [PACKAGE])


class Idle(NamedTuple):
    """Why a value that was given does nothing; `shared` is no mistake."""

    why: str
    shared: bool = False


def found(config: Config, plan: Plan, said: Iterable[str]) -> dict[str, Idle]:
    """Return each key given that can have no effect in this run, with the first reason for it."""
    rules, idle = (*RULES, *_passed_over(config)), {}
    for key in said:
        rule = next((rule for rule in rules if rule.concerns(key) and rule.holds(config, plan)), None)
        if rule is not None:
            idle[key] = Idle(rule.why, rule.shared)
    return idle


def line(key: str, said: Said, why: str) -> str:
    """Return the line about a value that does nothing."""
    told = mistake(key, said.value, "left out", why)
    return f"{said.file}: {told}" if said.file else told


def note(key: str, said: Said, why: str) -> str:
    """Return the plan's note on a value that does nothing, where that is no mistake."""
    return f"{key}={shown(said.value)}: no effect here, {why}"


def _passed_over(config: Config) -> list[Rule]:
    """Return a rule for the settings of each evaluation that makes no sense for the model, and one for their choice."""
    names = [name for name, one in config.evaluation.items() if not one.applies(config.model)]
    why = f"{type(config.model).__name__} is not measured by it"
    rules = [Rule(f"evaluation.{name}", lambda c, p: True, why, shared=True) for name in names]
    chosen = f"{type(config.model).__name__} is not measured by {', '.join(names)}"
    return [*rules, Rule("evaluation", lambda c, p: True, chosen, shared=True)] if names else []


# The cycle


def _no_transfer(config: Config, plan: Plan) -> bool:
    return len(plan.levels) == 1


def _no_way_up(config: Config, plan: Plan) -> bool:
    return all(after.level >= before.level for before, after in pairwise(config.settings.cycle.stages))


def _come_back(cycle: Cycle) -> list[int]:
    """Return the rows that come up to a level which an earlier row trained."""
    rows = cycle.stages
    return [
        i
        for i in range(1, len(rows))
        if rows[i].level < rows[i - 1].level and any(row.level == rows[i].level for row in rows[:i])
    ]


def _no_blend(config: Config, plan: Plan) -> bool:
    rows = config.settings.cycle.stages
    return all(rows[i].alpha is not None for i in _come_back(config.settings.cycle))


def _one_stage(config: Config, plan: Plan) -> bool:
    return len(config.settings.cycle.stages) == 1


def _only_up(config: Config, plan: Plan) -> bool:
    """Growth from a model that no finer one was merged into, by a method that copies nothing."""
    rows = config.settings.cycle.stages
    return len(plan.levels) > 1 and all(after.level <= before.level for before, after in pairwise(rows))


# Coarsening and growth: whatever merges nothing at all is left to the rules of the cycle.


def _same_width(config: Config, plan: Plan) -> bool:
    axes = {axis for level in plan.levels if level.resize is not None for axis in level.resize.merges}
    return len(plan.levels) > 1 and axes <= set(DEPTH)


def _no_noise_to_cancel(config: Config, plan: Plan) -> bool:
    return config.settings.cycle.noise > 0 and _same_width(config, plan)


def _same_depth(config: Config, plan: Plan) -> bool:
    merged = [level.resize for level in plan.levels if level.resize is not None]
    return len(merged) > 0 and all(resize.fine.get(a) == resize.coarse.get(a) for resize in merged for a in DEPTH)


def _same(config: Config, plan: Plan) -> bool:
    return _same_width(config, plan) and _same_depth(config, plan)


def _inherits_only_up(config: Config, plan: Plan) -> bool:
    return _is(config.growth, ("Inherit",)) and _only_up(config, plan)


def _inherits(config: Config, plan: Plan) -> bool:
    return _is(config.growth, ("Inherit",)) and len(plan.levels) > 1


def _nothing_to_restore(config: Config, plan: Plan) -> bool:
    return config.settings.cycle.optimizer_policy != "carry" or not _come_back(config.settings.cycle)


def _from_no_layer(config: Config, plan: Plan) -> bool:
    grown = [level.resize for level in plan.levels if level.resize is not None]
    return len(grown) > 0 and all(resize.coarse[a] == 0 for resize in grown for a in DEPTH if a in resize.coarse)


_RATIOS = ("Uniform", "FPI", "Shuffled")

_CYCLE = (
    Rule("cycle.alpha", _no_blend, "no level is left and come back to with the cycle's alpha", shared=True),
    Rule("cycle.noise", _no_way_up, "the cycle never goes up to a finer level", shared=True),
    Rule("cycle.optimizer_policy", _no_transfer, "the cycle has one level", shared=True),
    Rule("cycle.lr_policy", _one_stage, "the cycle has one stage, and so one schedule", shared=True),
    Rule("coarsening", _no_transfer, "the cycle has one level", shared=True),
    Rule("growth", _no_way_up, "the cycle never goes up to a finer level", shared=True),
    Rule(
        "cycle.auto.probe_length",
        lambda c, p: c.settings.cycle.auto is not None and not c.settings.cycle.auto.probe,
        "cycle.auto.probe=[] tries nothing",
    ),
)

_LEVELS = (
    Rule("cycle.noise", _no_noise_to_cancel, "no axis of the width merges, so none has copies"),
    Rule("coarsening.units", _same_width, "no axis of the width merges", _RATIOS),
    Rule("coarsening.seed", _same_width, "no axis of the width merges, and none else is drawn", ("FPI",)),
    Rule("coarsening.seed", _same, "nothing merges", ("Shuffled",)),
    Rule("coarsening.layers", _same_depth, "coarsening.depth=1 merges no layers", ("Uniform",)),
    Rule("coarsening.keep", _same_depth, "no layers merge", ("Custom",)),
    Rule("coarsening.depth_scale", _same_depth, "the levels have equally many layers", (*_RATIOS, "Custom")),
    Rule("coarsening.depth_scale", _inherits, "growth=inherit copies no layer"),
    Rule("coarsening.units", _inherits_only_up, "growth=inherit takes sizes alone", _RATIOS),
    Rule("coarsening.layers", _inherits_only_up, "growth=inherit takes sizes alone", ("Uniform",)),
    Rule("coarsening.seed", _inherits_only_up, "growth=inherit takes sizes alone", _RATIOS),
    Rule(
        "growth.state",
        _nothing_to_restore,
        "there is none to restore without cycle.optimizer_policy=carry and a level that is left and come back to",
        ("Restore",),
    ),
    Rule("growth.place", _from_no_layer, "the coarse level has no layer, so all are new", ("Fresh",)),
    Rule("growth.noise", _same_depth, "the levels have equally many layers, so no depth is learned", ("LiGO",)),
    Rule("growth.lr", lambda c, p: c.growth.steps == 0, "growth.steps=0 learns nothing", ("LiGO",)),
)

# Optimizer and search


def _no_decay(config: Config, plan: Plan) -> bool:
    return config.optimizer.schedule.shape != "wsd"


_TRAINING = (
    Rule(
        "optimizer.schedule.floor",
        lambda c, p: c.optimizer.schedule.shape == "constant",
        "optimizer.schedule.shape=constant never falls: choose another shape",
    ),
    Rule("optimizer.schedule.decay", _no_decay, "optimizer.schedule.shape=wsd alone has a decay: set it"),
    Rule(
        "optimizer.schedule.decay",
        lambda c, p: c.settings.cycle.decay is not None,
        "the cycle has a decay of its own (cycle.decay)",
        shared=True,
    ),
    Rule("find.prune_after", lambda c, p: c.settings.find.prune is None, "find.prune=null stops no run: set it"),
)

# Data: the classes of text and pictures


_TEXT = ("Sotu", "Files", "Hub")
_HUBS = ("Hub", "ImageHub")


def _still(config: Config, plan: Plan) -> bool:
    return bool(config.data.augment.operations == 0)


def _unmixed(config: Config, plan: Plan) -> bool:
    return bool(config.data.mix.mixup == 0 and config.data.mix.cutmix == 0)


def _one_mix(config: Config, plan: Plan) -> bool:
    return bool(config.data.mix.mixup == 0 or config.data.mix.cutmix == 0)


def _no_spans(config: Config, plan: Plan) -> bool:
    return bool(config.model.objective != "span")


_DATA = (
    Rule("data.mask_rate", lambda c, p: c.model.objective == "causal", "a causal model has no masks", _TEXT),
    Rule("data.mask_span", _no_spans, "only a model of spans (T5) has noise", _TEXT),
    Rule(
        "data.tokenizer_characters",
        lambda c, p: c.data.tokenizer is not None,
        "data.tokenizer is given, so none is trained",
        _TEXT,
    ),
    Rule(
        "data.held_out",
        lambda c, p: bool(c.data.validation_files),
        "data.validation_files are held out: leave one of them out",
        ("Files", "ImageFiles"),
    ),
    Rule(
        "data.held_out",
        lambda c, p: bool(c.data.validation_sources),
        "data.validation_sources are held out: leave one of them out",
        ("Hub",),
    ),
    Rule("data.document", lambda c, p: c.data.format != "text", "data.format=text alone is cut up", ("Files",)),
    Rule("data.encoding", lambda c, p: c.data.format == "parquet", "Parquet files have one encoding", ("Files",)),
    Rule("data.image", lambda c, p: c.data.format == "imagefolder", "a folder has no columns", ("ImageFiles",)),
    Rule("data.label", lambda c, p: c.data.format == "imagefolder", "a folder has no columns", ("ImageFiles",)),
    Rule("data.block", lambda c, p: not c.data.streaming, "data.streaming=false shuffles all as a whole", _HUBS),
    Rule("data.augment.magnitude", _still, "data.augment.operations=0", ("Digits", "ImageFiles", "ImageHub")),
    Rule("data.augment.magnitude_std", _still, "data.augment.operations=0", ("Digits", "ImageFiles", "ImageHub")),
    Rule("data.mix.probability", _unmixed, "neither mixup nor cutmix is on", ("Digits", "ImageFiles", "ImageHub")),
    Rule("data.mix.switch", _one_mix, "it takes both mixup and cutmix", ("Digits", "ImageFiles", "ImageHub")),
)

# Models


def _unstretched(config: Config, plan: Plan) -> bool:
    return bool(config.model.rope_factor == 1)


def _one_block(config: Config, plan: Plan) -> bool:
    return max(plan.levels[0].sizes[axis] for axis in DEPTH if axis in plan.levels[0].sizes) == 1


_MODEL = (
    *(
        Rule(f"model.{key}", _unstretched, "model.rope_factor=1 stretches nothing", ("Llama",))
        for key in ("rope_low", "rope_high", "rope_position")
    ),
    Rule(
        "model.distillation_head",
        lambda c, p: not c.model.distillation,
        "model.distillation=false has no distillation token",
        ("DeiT",),
    ),
    Rule(
        "model.drop_path",
        _one_block,
        "the first block is never left out, and the model has no other",
        ("GPT", "BERT", "DeiT", "Llama", "T5"),
        shared=True,  # with one layer of it alone, the control
    ),
)

RULES = (*_CYCLE, *_LEVELS, *_TRAINING, *_DATA, *_MODEL)
