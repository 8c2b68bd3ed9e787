"""What a network is worth while it trains: its evaluations, and how large everything is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlrun.config.load import Config
from mlrun.evaluate.base import Benchmark, Context, measure, recorded
from mlrun.evaluate.words import Words
from mlrun.log.doing import evaluating
from mlrun.models.network import Network
from mlrun.train import health, loop
from mlrun.train.loop import Trainee
from mlrun.train.parallel.processes import Ranks

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Assessment:
    """The held-out samples and what is asked of a network on them; all processes assess together.

    `words` tells how many bytes a token stands for, where that is known; `tell` hears how far an evaluation is.
    """

    config: Config
    ranks: Ranks
    source: Any
    words: Words | None
    tell: Tell

    def held_out(self) -> Iterator[Any]:
        """Return the held-out batches."""
        return iter(self.source.validation(self.config.settings.eval.batch))

    def of(self, trainee: Trainee, pause: Callable[[], None], ends: bool) -> dict[str, Any]:
        """Return what the evaluations say of the network, and as `ema_...` of its averaged weights.

        Where the stage ends, those with data of their own are among them, and `results` has all with their errors.

        Args:
            pause: raises Stopped between two pieces of work where a signal asks for it.
        """
        settings, ranks, placement = self.config.settings, self.ranks, self.ranks.placement
        context = Context(
            self.source, settings.eval.batch, settings.hardware, ranks, pause, self.words, settings.cache,
            tell=lambda what, done, of: self.tell(evaluating(what), done, of),
        )  # fmt: skip
        due = [one for one in self.config.evaluation.values() if ends or not isinstance(one, Benchmark)]
        found = {"": measure(due, trainee.net, context)}
        if trainee.ema is not None:
            averaged = placement.network(trainee.net.model, trainee.ema, ranks.device, settings.hardware.precision)
            found["ema_"] = measure(due, averaged, replace(context, what="ema_"))
        return recorded(found, whole=ends)

    def look(self, net: Network, flops: float) -> dict[str, Any] | None:
        """Return how large everything is in each layer, on the first held-out batch, and what it cost to find out.

        Args:
            flops: of a sample, forward and backward.
        """
        batch = next(self.held_out())
        found = health.look(net, batch, self.config.settings.hardware, self.ranks)
        if found is None:
            return None
        cost = loop.samples(batch) * flops + found.pop("score_flops")
        return {**found, "health_flops": cost}
