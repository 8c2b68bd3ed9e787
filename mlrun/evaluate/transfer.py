"""Transfer: how well a model of images learns another set of pictures, by fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from omegaconf import MISSING, DictConfig

from mlrun.config.choices import build
from mlrun.data import ahead
from mlrun.data.paths import resolve, with_folders
from mlrun.errors import UserError, mistake
from mlrun.evaluate import finetune, metrics
from mlrun.evaluate.base import Context, Results
from mlrun.evaluate.finetune import FineTuning, Subject
from mlrun.models.base import Model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from mlrun.evaluate.base import Batch
    from mlrun.evaluate.words import Words
    from mlrun.models.network import Network

KEY = "evaluation.transfer."


@dataclass(frozen=True)
class Transfer(FineTuning):
    """`transfer`: top-1 accuracy on the held-out pictures of another set, at the model's own size of pictures.

    The head is a new one with a class for each of the set's (Touvron et al. 2021, section 5.3).

    data: a data set of pictures, as in conf/data. drop_path: as a model's.
    """

    data: Any = MISSING
    drop_path: float = 0.0

    needs_words: ClassVar[bool] = False

    def problems(self) -> list[str]:
        found = self.recipe_problems(KEY)
        if not 0 <= self.drop_path < 1:
            found.append(mistake(f"{KEY}drop_path", self.drop_path, "at least 0 and under 1", "correct the value"))
        try:
            spec = self.spec()
        except UserError as error:
            return found + _named(error.problems)
        if not hasattr(spec, "source_problems") or not hasattr(spec, "classes"):
            return [*found, mistake(f"{KEY}data", type(spec).__name__, "a data set of pictures", "choose one")]
        if getattr(spec, "streaming", False):
            found.append(mistake(f"{KEY}data.streaming", True, "false", "epochs need a number of pictures"))
        return found + _named(spec.source_problems())

    def spec(self) -> Any:
        """Return the data set; UserError if the settings do not make one."""
        return build(DictConfig(dict(self.data)), "data")

    def applies(self, model: Model) -> bool:
        return model.objective == "image"

    def reads(self) -> list[str]:
        spec = self.spec()
        named = (*getattr(spec, "files", ()), *getattr(spec, "validation_files", ()))
        return resolve(with_folders(named))

    def unfit(self, model: Model, words: Words | None) -> list[str]:
        spec = self.spec()
        return _named(spec.problems(self._with_classes(model, spec.classes)))

    def _with_classes(self, model: Model, classes: int) -> Model:
        """Return the model that is fine-tuned."""
        rates = {"dropout": self.dropout, "drop_path": self.drop_path}
        return replace(cast(Any, model.as_evaluated()), classes=classes, **rates)

    def measure(self, net: Network, context: Context) -> Results:
        from mlrun.evaluate.weights import whole

        spec = self.spec()
        model = self._with_classes(net.model, spec.classes)
        weights = whole(net, context)
        try:
            opened = spec.open(model, 0, context.cache, self.batch)
        except UserError as error:
            raise UserError(_named(error.problems)) from error
        source = ahead.served(opened, context.hardware.workers, context.ranks.device)
        subject = Pictures(self, model, weights, source, context)
        found = finetune.trials(subject, self, context)
        right = subject.right
        about = {
            "guess": metrics.guess("accuracy", right),
            "majority": metrics.majority(right),
            "train": subject.samples,
        }
        return {"transfer": finetune.result("accuracy", found, len(right), self.version, about)}


def _named(problems: list[str]) -> list[str]:
    """Return lines about `data...` as lines about ours."""
    return [f"{KEY}{line}" if line.startswith("data") else line for line in problems]


class Pictures(Subject):
    """An image model and another set of pictures."""

    def __init__(
        self, recipe: Transfer, model: Model, weights: dict[str, Tensor], source: Any, context: Context
    ) -> None:
        self.recipe, self.model, self.weights, self.source, self.context = recipe, model, weights, source, context
        self.samples = source.samples
        self.right = [float(label) for batch in self.dev() for label in batch["labels"].tolist()]

    def learner(self, seed: int) -> nn.Module:
        from mlrun.evaluate.weights import Whole
        from mlrun.models.axes import expand
        from mlrun.models.network import Network, initial

        net, sizes, state = Network(self.model), self.model.sizes(), dict(self.weights)
        for name, param in expand(self.model.params(), sizes):
            if any(factor.axis == "classes" for factor in param.factors):
                state[name] = initial(name, param, sizes, seed)
        net.load_state_dict(state)
        return Whole(net)

    def batches(self, seed: int) -> Iterator[Batch]:
        return self.source.seeded(seed).batches(0, self.recipe.batch)

    def flops(self, batch: Batch) -> int:
        return len(batch["labels"]) * self.model.flops(0, 1).total

    def dev(self) -> Iterator[Batch]:
        return self.source.validation(self.context.batch)

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        import numpy as np

        given_N = np.where(np.isfinite(logits).all(-1), logits.argmax(-1), np.nan)
        return {"accuracy": metrics.score("accuracy", given_N, self.right)}
