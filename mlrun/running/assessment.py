"""What a network is worth while it trains: its evaluations, and how large everything is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mlrun.config.load import Config
from mlrun.evaluate.base import Benchmark, Context, measure, recorded
from mlrun.evaluate.words import Words
from mlrun.log.doing import evaluating
from mlrun.models.network import Network
from mlrun.multilevel.transition import copy_similarity
from mlrun.plan.stages import Plan, Stage
from mlrun.train import health, loop
from mlrun.train.loop import Trainee
from mlrun.train.parallel.placement import Placement
from mlrun.train.reading import Reading
from mlrun.train.snapshot import Progress

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Assessment:
    """What is asked of a network on the held-out samples; all processes assess together.

    `words` tells how many bytes a token stands for, where that is known; `tell` hears how far an evaluation is.
    """

    config: Config
    data: Reading
    words: Words | None
    tell: Tell

    def of(self, trainee: Trainee, pause: Callable[[], None], ends: bool) -> dict[str, Any]:
        """Return what the evaluations say of the network, and as `ema_...` of its averaged weights.

        Where the stage ends, those with data of their own are among them, and `results` has all with their errors.

        Args:
            pause: raises Stopped between two pieces of work where a signal asks for it.
        """
        settings, ranks = self.config.settings, self.data.ranks
        context = Context(
            self.data.source, settings.eval.batch, settings.hardware, ranks, pause, self.words, settings.cache,
            tell=lambda what, done, of: self.tell(evaluating(what), done, of),
        )  # fmt: skip
        due = [one for one in self.config.evaluation.values() if ends or not isinstance(one, Benchmark)]
        found = {"": measure(due, trainee.net, context)}
        if trainee.ema is not None:
            model, precision = trainee.net.model, settings.hardware.precision
            averaged = ranks.placement.network(model, trainee.ema, ranks.device, precision)
            found["ema_"] = measure(due, averaged, replace(context, what="ema_"))
        return recorded(found, whole=ends)

    def layers(self, net: Network, flops: float) -> dict[str, Any] | None:
        """Return how large everything is in each layer, on the first held-out batch, and what it cost to find out.

        None without `health`, and on a process that does not look (see `mlrun.train.health`).

        Args:
            flops: of a sample, forward and backward.
        """
        if not self.config.settings.health:
            return None
        batch = next(self.data.held_out())
        found = health.look(net, batch, self.config.settings.hardware, self.data.ranks)
        if found is None:
            return None
        cost = loop.samples(batch) * flops + found.pop("score_flops")
        return {**found, "health_flops": cost}


def compared(plan: Plan, stage: Stage, step: int, progress: Progress, net: Network, where: Placement) -> dict[str, Any]:
    """Return what a `val` record has beside what was measured.

    Of a branch, what a run would have cost that had this as its end; of a decoalesced model, how alike its copies are.
    """
    if stage.fork is not None:
        own = plan.own(stage, step)
        values = {f"own_{name}": getattr(own, name) for name in ("step", "tokens", "flops", "flops_body")}
        return values | {"own_seconds": progress.forks[str(stage.fork)] + progress.stage_seconds[stage.index]}
    return copy_similarity(net, plan.pair(stage), where) if stage.transfer == "decoalesce" else {}
