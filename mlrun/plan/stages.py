"""Levels, stages and what they cost: the values that a plan is made of. Pure maths, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from mlrun.errors import mistake
from mlrun.models.axes import Resize, Sizes
from mlrun.models.layers import Flops
from mlrun.plan.fade import Fade
from mlrun.units import Rates


@dataclass(frozen=True)
class Level:
    """One model size; level 1 is the model you want. `resize` leads to the next coarser level, if there is one.

    `turns` are the ways down where another one is taken at each coming down, in turn; `resize` is the first of them.
    `inexact` says why growing into this level changes the function, one line each; empty if it does not.
    `flops` are those of one sample, `update_flops` those that the optimizer adds to each step, whatever its batch.
    `state_bytes` is what training keeps of it in float32: weights, gradients and the optimizer's state.
    `rates` are the factors on the learning rate by kind of tensor; empty with the standard parametrisation.
    """

    number: int
    model: Any
    parameters: int
    flops: Flops
    resize: Resize | None = None
    inexact: tuple[str, ...] = ()
    state_bytes: int = 0
    update_flops: int = 0
    turns: tuple[Resize, ...] = ()
    rates: tuple[Mapping[str, Any], ...] = ()

    @property
    def sizes(self) -> Sizes:
        """Axis sizes of this level's model."""
        return dict(self.model.sizes())

    def step_flops(self, batch: int) -> int:
        """Return the FLOPs of a step of so many whole samples."""
        return batch * self.flops.total + self.update_flops

    def at(self, turn: int) -> Level:
        """Return the level as it leads to the coarser one at a coming down, counted from 0."""
        return replace(self, resize=self.turns[turn % len(self.turns)]) if self.turns else self


@dataclass(frozen=True)
class Samples:
    """What a step reads: tokens read and predicted per sample, samples of a step, tokens that a sample counts for.

    `pieces` are the samples that one of the data's own is cut into, where the stage reads shorter ones.
    """

    sequence: int
    targets: int
    batch: int
    tokens: int
    pieces: int = 1

    @property
    def read(self) -> int:
        """The data's own samples that a step takes: a stage never ends inside one."""
        return self.batch // self.pieces

    def rates(self, flops: int, whole: float) -> Rates:
        """Return what a step of `flops` spends, where `%` is of `whole` steps."""
        return Rates(self.batch, self.batch * self.tokens, flops, whole)


@dataclass(frozen=True)
class Open:
    """A stage whose end is decided while it runs; as planned it ends at the latest.

    The held-out losses from step `begin` on count, and `earliest` is the first step at which it may end. `rest` are the
    steps of the last stage if it does; None if another stage is to be decided before that.
    """

    begin: int
    earliest: int
    rest: int | None = None


@dataclass(frozen=True)
class Stage:
    """One stretch of training at one level: steps `first` to `first + steps`, after `transfer` from the level before.

    `samples` is what each of its steps reads, `begins` how many of the data's own samples were read before it.
    `alpha` is the share of the decoalesced weights: 1 where no model was kept to blend with; None without a blend.
    `step_flops` are the FLOPs per sample of its steps, which come in turn (mostly there is one), `update_flops` those
    that the optimizer adds to each; `entry_flops` is what growing into the stage cost by itself. `fade` says what layer
    dropout spares of them, None without.

    A branch (`cycle.branches`) goes on from the state that the run had after step `fork`, with the samples that came
    next there; `ending` is the share of the budget at which it ends. Both are None for the stages of the trunk.

    A probe (`cycle.auto.probe`) tries one way to grow; `probe` is its number. `start` is the step whose saved state a
    stage goes on from, where that is not the stage before; of the stage after probes it is the end of the one that was
    kept, None while none is. `origin` is the step that its first one stands for, where that is another
    (`Stage.place`). `open` is set while the stage's end is to be decided. `turn` says at which coming down, from 0 on,
    the coarse model of its transfer was made (`Level.turns`).
    """

    index: int
    level: int
    samples: Samples
    step_flops: tuple[Flops, ...]
    entry_flops: Flops
    lr_scale: float
    transfer: str | None = None
    alpha: float | None = None
    fade: Fade | None = None
    first: int = 0
    steps: int = 0
    begins: int = 0
    fork: int | None = None
    ending: float | None = None
    probe: int | None = None
    start: int | None = None
    origin: int | None = None
    open: Open | None = None
    update_flops: int = 0
    turn: int = 0

    @property
    def in_trunk(self) -> bool:
        """True for a stage that leads to the final model: no branch, and no probe (the kept one's end is its start)."""
        return self.fork is None and self.probe is None

    @property
    def end(self) -> int:
        """The step after the stage's last."""
        return self.first + self.steps

    @property
    def mean_step_flops(self) -> int:
        """FLOPs per sample of a step, the mean over its steps."""
        mean = sum(step.total for step in self.step_flops) // len(self.step_flops)
        if self.fade is None or self.steps == 0:
            return mean
        return mean - self._spared(self.steps) // (self.steps * self.samples.batch)

    @property
    def flops_of_a_step(self) -> int:
        """FLOPs of a step with the optimizer's, the mean over its steps."""
        return self.samples.batch * self.mean_step_flops + self.update_flops

    def place(self, step: int) -> int:
        """Return the step of the run that a step stands for, as if that run had neither branches nor other probes.

        A branch goes on where the trunk was at the fork, every probe where they all begin, and the stage after probes
        where one of them ended.
        """
        return step if self.origin is None else self.origin + step - self.first

    def watched(self, step: int) -> bool:
        """Return whether the held-out loss after `step` is one that the end of the stage is decided by."""
        return self.open is not None and (step >= self.open.begin or step == self.end)

    def cursor(self, step: int) -> int:
        """Return how many of the data's own samples come before those of `step`: a branch reads what the trunk does."""
        return self.begins + (step - self.first) * self.samples.read

    def rates(self, whole: float) -> Rates:
        """Return what a step spends, where `%` is of `whole` steps."""
        return self.samples.rates(self.flops_of_a_step, whole)

    def flops(self, steps: int) -> Flops:
        """Return the FLOPs of entering the stage and taking `steps` steps."""
        kinds = len(self.step_flops)
        samples = [len(range(kind, steps, kinds)) * self.samples.batch for kind in range(kinds)]
        body = sum(n * step.body for n, step in zip(samples, self.step_flops, strict=True)) + steps * self.update_flops
        head = sum(n * step.head for n, step in zip(samples, self.step_flops, strict=True))
        return Flops(self.entry_flops.body + body - self._spared(steps), self.entry_flops.head + head)

    def _spared(self, steps: int) -> int:
        """Return the FLOPs that layer dropout spares in the first `steps` steps."""
        begins = self.place(self.first)
        return 0 if self.fade is None else self.fade.spares(begins, begins + steps)


@dataclass(frozen=True)
class Lacking:
    """An ending that was asked for `if possible` and that the cycle cannot have.

    `point` is the point as it was asked for, `ending` its share of the budget, `why` the reason in words.
    """

    point: str
    ending: float
    why: str


@dataclass(frozen=True)
class Spent:
    """Cumulative cost of training: steps, samples, tokens and FLOPs of forward and backward."""

    step: int
    samples: int
    tokens: int
    flops: int
    flops_body: int

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Plan:
    """What will run: the cycle's stages (the trunk), then its branches.

    `batch` (in samples), `sequence` and `tokens_per_sample` are those of the matched from-scratch run, `budget_steps`
    its steps at level 1; a stage may have others (`Stage.samples`). `source` is what the weights that the first stage
    starts from cost before, as plan.json has it; None for a fresh start. `notes` are what a reader should know of it, a
    line each; `lacking` are the endings that this cycle does without. `longest` is the span that the `%` of the warm-up
    is of, where the run decides its own on the way: the longest that it can have. `probes` are the names of the growths
    that are tried.
    """

    name: str
    batch: int
    sequence: int
    tokens_per_sample: int
    budget_steps: int
    levels: tuple[Level, ...]
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()
    lacking: tuple[Lacking, ...] = ()
    source: Mapping[str, Any] | None = None
    longest: int | None = None
    probes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return self.stages[-1].end

    @property
    def trunk(self) -> tuple[Stage, ...]:
        """The stages of the cycle, which lead to the final model."""
        return tuple(stage for stage in self.stages if stage.in_trunk)

    @property
    def forks(self) -> frozenset[int]:
        """The steps of the trunk after which branches fork."""
        return frozenset(stage.fork for stage in self.stages if stage.fork is not None)

    def last(self, stage: Stage) -> Stage:
        """Return the last stage of the run that `stage` belongs to: for a branch the trunk's, ended as the branch."""
        trunk = self.trunk[-1]
        return trunk if stage.fork is None else replace(trunk, steps=stage.fork + stage.steps - trunk.first)

    @property
    def budget_flops(self) -> int:
        """FLOPs of the matched from-scratch run."""
        return self.budget_steps * self.levels[0].step_flops(self.batch)

    def level(self, number: int) -> Level:
        """Return a level by its number, from 1."""
        return self.levels[number - 1]

    def pair(self, stage: Stage) -> Level:
        """Return the finer level of a stage's transfer, as it leads to the coarser one at that turn."""
        number = stage.level - 1 if stage.transfer == "coalesce" else stage.level
        return self.level(number).at(stage.turn)

    def budget_in(self, samples: Samples) -> float:
        """Return the steps of such samples that hold the budget's tokens: what `%` is of."""
        return self.budget_steps * (self.batch * self.tokens_per_sample) / (samples.batch * samples.tokens)

    def kept(self, probe: Stage) -> bool | None:
        """Return whether the run went on with a probe; None before that is decided."""
        after = next(stage for stage in self.stages[probe.index :] if stage.probe is None)
        return None if after.start is None else after.start == probe.end

    def leaves_state(self, stage: Stage) -> bool:
        """Return whether others start from where a stage ended: probes from it, or what follows from a probe."""
        return stage.probe is not None or any(s.probe == 0 and s.start == stage.end for s in self.stages)

    def began(self, stage: Stage) -> int:
        """Return the step (`Stage.place`) at which the stretch at one level began that `stage` goes on with.

        Of a branch it is the trunk's last stage, and what follows probes goes on with the one that was kept.
        """
        own = stage if stage.fork is None else self.trunk[-1]
        before = self.stages[own.index - 1] if own.index > 0 and own.probe is None else own
        first = own if before.probe is None else before
        return first.place(first.first)

    def spent(self, step: int, stage: int | None = None) -> Spent:
        """Return what training has cost after `step` steps.

        `stage` is the stage that the run is in, entered at its own cost; None is the one that took the last step.
        """
        if stage is None:
            stage = max((s.index for s in self.stages if s.first < step), default=-1)
        entered = self.stages[: stage + 1]
        taken = [min(max(step - s.first, 0), s.steps) for s in entered]
        done = [s.flops(steps) for s, steps in zip(entered, taken, strict=True)]
        samples = [steps * s.samples.batch for s, steps in zip(entered, taken, strict=True)]
        tokens = sum(n * s.samples.tokens for s, n in zip(entered, samples, strict=True))
        return Spent(step, sum(samples), tokens, sum(f.total for f in done), sum(f.body for f in done))

    def own(self, stage: Stage, step: int) -> Spent:
        """Return what a run would have cost that ends at `step` of a branch: the trunk up to the fork, and the rest."""
        assert stage.fork is not None
        shared, trunk = self.spent(stage.fork, self.trunk[-1].index), self.spent(stage.first, stage.index - 1)
        return shared + self.spent(step, stage.index) - trunk

    @property
    def total(self) -> Spent:
        """What all stages cost."""
        return self.spent(self.steps, len(self.stages) - 1)

    def stage_cost(self, stage: Stage) -> Spent:
        """Return the cost of one stage alone."""
        return self.spent(stage.end, stage.index) - self.spent(stage.first, stage.index - 1)


def alpha_problems(key: str, alpha: float) -> list[str]:
    """Return a line unless `alpha` is a share of the decoalesced model."""
    remedy = "0 keeps the fine model, 1 takes the decoalesced one"
    return [] if 0 <= alpha <= 1 else [mistake(key, alpha, "a number in [0, 1]", remedy)]
