"""What every growing method is: from a coarse model at rest to one at the next finer level. No torch at import.

A method may also cost something of its own when it is entered, and change how the stage that it leads into
trains (frozen layers, a teacher). That holds for that stage alone: a further row of the same level trains as usual.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mlrun.errors import mistake
from mlrun.models.axes import Resize, Rule
from mlrun.models.base import Model
from mlrun.models.layers import Flops, Stack
from mlrun.plan.stages import Samples

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.config.load import Config
    from mlrun.config.settings import Settings
    from mlrun.models.network import Network
    from mlrun.plan.stages import Level, Stage
    from mlrun.train.parallel.processes import Ranks
    from mlrun.train.snapshot import Snapshot
    from mlrun.train.stage_loss import StageLoss


@dataclass(frozen=True)
class Context:
    """What a method may use beside the weights; batches are those that come next.

    `carried` is the optimizer's state that goes along, by kind, with its rule; empty where it starts anew. `kept` is
    the model that this level left when it was coalesced, None if it was not trained before. `pause` raises Stopped if
    a signal asks for it: what takes long calls it between two pieces of work, and `tell` with what it does, how many
    of them are done and of how many.
    """

    seed: int
    carried: Mapping[str, Rule]
    ranks: Ranks
    settings: Settings
    batches: Callable[[], Iterator[Mapping[str, Tensor]]]
    kept: Snapshot | None = None
    pause: Callable[[], None] = lambda: None
    tell: Callable[[str, int, int | None], None] = lambda what, done, of: None


@dataclass(frozen=True)
class Growth(ABC):
    """How a model goes up, and what it asks of the stage that follows.

    makes_equal_copies: the members of a group leave equal.
    keeps_teacher: the coarse model stays for the stage that follows.
    partial_gradients: some parameters get no gradient in that stage, and so no optimizer state.
    stateless_because: why no optimizer state can be carried into what it grows; None if it can.
    unsharded_because: why each process needs the whole model; None for what works a tensor at a time, and so on shards.
    """

    makes_equal_copies: ClassVar[bool] = False
    keeps_teacher: ClassVar[bool] = False
    partial_gradients: ClassVar[bool] = False
    stateless_because: ClassVar[str | None] = None
    unsharded_because: ClassVar[str | None] = None

    @abstractmethod
    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        """Return the model on `level`, whose `resize` leads to the coarse one."""

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        """Return what does not fit growing into `model`, one line each."""
        return []

    def policy_problems(self, config: Config) -> list[str]:
        """Return a line for each setting of the run that cannot go with this method, whatever the model."""
        settings, name, found = config.settings, type(self).__name__, []
        cycle, stateless = settings.cycle, self.stateless_because
        if cycle.noise > 0 and not self.makes_equal_copies:
            remedy = f"noise cancels between equal copies; {name} makes none"
            found.append(mistake("cycle.noise", cycle.noise, "0", remedy))
        if self.partial_gradients and stateless is None:
            stateless = "may leave layers without optimizer state"
        if stateless is not None and cycle.optimizer_policy == "carry":
            found.append(mistake("cycle.optimizer_policy", "carry", "reset", f"{name} {stateless}"))
        if self.unsharded_because is not None and settings.hardware.sharding != "none":
            remedy = f"{name} {self.unsharded_because}: it needs the whole model in every process"
            found.append(mistake("hardware.sharding", settings.hardware.sharding, "none", remedy))
        return found

    def remarks(self, config: Config, resize: Resize) -> list[str]:
        """Return what a reader of the plan should know of this method with these settings, one line each."""
        return []

    def inexact(self, resize: Resize, post_norm: bool) -> list[str]:
        """Return why growing changes the function, one line each; empty: it is kept exactly."""
        return [f"{type(self).__name__} does not keep the function"]

    def entry_flops(self, model: Model, resize: Resize, samples: Samples) -> Flops:
        """Return the FLOPs of the growing itself."""
        return Flops(0, 0)

    def step_flops(self, model: Model, resize: Resize, samples: Samples) -> tuple[Flops, ...]:
        """Return the FLOPs per sample of the steps of the stage that follows; they come in turn."""
        return (model.flops(samples.sequence, samples.targets),)

    def stage_loss(self, net: Network, stage: Stage, coarse: Level, teacher: Snapshot | None) -> StageLoss | None:
        """Return what the stage trains on, None for the network's own loss; it may freeze parameters."""
        return None


def only_axes(resize: Resize, allowed: tuple[str, ...], method: str) -> list[str]:
    """Return a line if a coarsening merges other axes than a method can grow."""
    others = [a for a, m in resize.merges.items() if a not in allowed and m.coarse < m.fine]
    if not others:
        return []
    remedy = f"{', '.join(others)} merges too: choose another coarsening or growth=decoalesce"
    return [mistake("growth", method, f"a coarsening of {', '.join(allowed)}", remedy)]


def layers_to_copy(resize: Resize, method: str) -> list[str]:
    """Return a line if the coarse level has no layer, to a method that makes all others of those it has."""
    empty = [axis for axis, size in resize.coarse.items() if size == 0]
    remedy = f"a level without {', '.join(empty)} has nothing to copy"
    return [mistake("growth", method, "fresh", remedy)] if empty else []


def plain_depth(resize: Resize, remedy: str) -> list[str]:
    """Return a line if a coarsening says how copies of layers act, to a method that makes none by that rule."""
    if resize.depth_scale == "copy":
        return []
    return [mistake("coarsening.depth_scale", resize.depth_scale, "copy", f"choose {remedy}, or growth=decoalesce")]


def one_stack(model: Model, method: str) -> list[str]:
    """Return a line if a model has other than one stack of blocks."""
    stacks = [part for part in model.parts().values() if isinstance(part, Stack)]
    if len(stacks) == 1:
        return []
    return [mistake("growth", method, "a model with one stack of blocks", f"{type(model).__name__} has {len(stacks)}")]
