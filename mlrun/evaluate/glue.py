"""GLUE (Wang et al. 2019): how well a text model learns each of its tasks, by fine-tuning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from mlrun.errors import mistake, mistakes
from mlrun.evaluate import finetune, glue_tasks, metrics
from mlrun.evaluate.base import Context, Result, Results
from mlrun.evaluate.finetune import FineTuning, Subject, Trial
from mlrun.models.base import Model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from mlrun.evaluate.base import Batch
    from mlrun.evaluate.classifier import Encoded
    from mlrun.evaluate.glue_tasks import Examples, Task
    from mlrun.evaluate.words import Words
    from mlrun.models.network import Network

KEY = "evaluation.glue."
SHORTEST = 8  # tokens of an example


@dataclass(frozen=True)
class Glue(FineTuning):
    """`glue/TASK`: the task's score, the mean of its metrics, each of which is `glue/TASK/METRIC` where there are
    several. `glue`: the mean over the tasks, as the paper has it, where there are several.

    tasks: by name {train: FILE, dev: FILE}, or `hub`.
    max_length: tokens of an example; null for all that the model reads at once.
    Of masked models that keep documents apart, and of causal ones that tell what their head reads (`Model.hidden`).
    """

    tasks: dict[str, Any] = MISSING
    max_length: int | None = None

    def problems(self) -> list[str]:
        length = self.max_length
        fine = length is None or length >= SHORTEST
        found = self.recipe_problems(KEY)
        found += mistakes(KEY, [("max_length", length, fine, f"null or at least {SHORTEST} tokens")])
        if not self.tasks:
            found.append(mistake(f"{KEY}tasks", dict(self.tasks), ", ".join(glue_tasks.TASKS), "name one or more"))
        return found or [p for name, files in self.tasks.items() for p in glue_tasks.pair_problems(str(name), files)]

    def reads(self) -> list[str]:
        return [file for files in self.tasks.values() for file in glue_tasks.files_of(files)]

    def applies(self, model: Model) -> bool:
        told = type(model).hidden is not Model.hidden
        return told and (model.objective == "causal" or (model.objective == "mlm" and model.within_documents))

    def unfit(self, model: Model, words: Words | None) -> list[str]:
        assert words is not None, "looked at before"
        length = self.max_length
        fine = f"null, or at most the {words.longest} tokens that the model reads at once"
        return mistakes(KEY, [("max_length", length, length is None or length <= words.longest, fine)])

    def measure(self, net: Network, context: Context) -> Results:
        from mlrun.evaluate.weights import whole

        assert context.words is not None, "looked at before"
        longest = context.words.longest if self.max_length is None else self.max_length
        weights = whole(net, context)
        found: dict[str, Result] = {}
        for name, files in self.tasks.items():
            own = context.about(f"{context.what}/{name}")
            subject = Answers.of(self, net.model, weights, own, name, files, longest)
            found |= self._results(f"glue/{name}", subject, finetune.trials(subject, self, own))
        if len(self.tasks) > 1:
            found["glue"] = self._mean([(name, found[f"glue/{name}"]) for name in self.tasks])
        return found

    def _results(self, name: str, subject: Answers, found: Sequence[Trial]) -> dict[str, Result]:
        task, right = subject.task, [one.answer for one in subject.held]
        first = next(iter(found[0].scores))
        results = {}
        for metric in found[0].scores:
            about: dict[str, Any] = {"guess": statistics.fmean(metrics.guess(m, right) for m in _parts(metric))}
            if task.labels:
                about["majority"] = metrics.majority(right)
            about |= {"train": subject.samples, "shortened": subject.shortened}
            own = name if metric == first else f"{name}/{metric}"
            results[own] = finetune.result(metric, found, len(right), self.version, about)
        return results

    def _mean(self, found: Sequence[tuple[str, Result]]) -> Result:
        """Return the mean over tasks; `metric` names them, so that others' means are not compared with it."""
        errors = [one.stderr for _, one in found if one.stderr is not None]
        error = math.sqrt(sum(e**2 for e in errors)) / len(found) if len(errors) == len(found) else None
        named = f"mean of {', '.join(name for name, _ in found)}"
        about = {key: [one.about[key] for _, one in found] for key in ("guess", "fine_tuning_flops")}
        told = {"guess": statistics.fmean(about["guess"]), "fine_tuning_flops": sum(about["fine_tuning_flops"])}
        n = sum(one.n or 0 for _, one in found)
        return Result(named, statistics.fmean(one.value for _, one in found), error, n, self.version, about=told)


def _parts(metric: str) -> list[str]:
    """Return the metrics that one is the mean of."""
    return metric.split(" and ")


@dataclass(frozen=True)
class Answers(Subject):
    """A text model and the examples of one task, as it reads them."""

    recipe: Glue
    model: Model
    weights: dict[str, Tensor]
    task: Task
    train: list[Encoded]
    held: list[Encoded]
    size: int

    @classmethod
    def of(
        cls,
        recipe: Glue,
        model: Model,
        weights: dict[str, Tensor],
        context: Context,
        name: str,
        files: Any,
        longest: int,
    ) -> Answers:
        """Return the subject of one task."""
        from mlrun.evaluate.classifier import encoded

        words = context.words
        assert words is not None, "looked at before"

        def read(examples: Examples) -> list[Encoded]:
            ids = ((list(map(words.ids, one.texts)), one.answer) for one in examples)
            return [encoded(words, model.objective, texts, answer, longest) for texts, answer in ids]

        train, held = map(read, glue_tasks.parts(name, files))
        dropping = replace(model.as_evaluated(), dropout=recipe.dropout, attention_dropout=recipe.dropout)
        return cls(recipe, dropping, weights, glue_tasks.TASKS[name], train, held, context.batch)

    @property
    def samples(self) -> int:  # type: ignore[override]
        return len(self.train)

    @property
    def shortened(self) -> int:
        """How many training and dev examples were too long."""
        return sum(one.shortened for one in (*self.train, *self.held))

    @property
    def outputs(self) -> int:
        """How many logits an example has."""
        return len(self.task.labels) or 1

    @property
    def masked(self) -> bool:
        """Whether what fills a batch up has to be hidden."""
        return self.model.objective == "mlm"

    def learner(self, seed: int) -> nn.Module:
        from mlrun.evaluate.classifier import Classifier
        from mlrun.models.network import build

        net = build(self.model, None)
        net.load_state_dict(self.weights)
        return Classifier(net, self.outputs, self.recipe.dropout, seed)

    def batches(self, seed: int) -> Iterator[Batch]:
        from mlrun.evaluate.classifier import shuffled

        return shuffled(self.train, self.recipe.batch, self.masked, seed)

    def flops(self, batch: Batch) -> int:
        from mlrun.evaluate.classifier import Classifier

        return Classifier.flops(self.model, batch, self.outputs)

    def dev(self) -> Iterator[Batch]:
        from mlrun.evaluate.classifier import batch

        for start in range(0, len(self.held), self.size):
            yield batch(self.held[start : start + self.size], self.masked)

    def scores(self, logits: np.ndarray) -> dict[str, float]:
        import numpy as np

        given_N = logits.argmax(-1).astype(np.float64) if self.task.labels else logits[:, 0].astype(np.float64)
        given_N[~np.isfinite(logits).all(-1)] = np.nan
        each = {
            metric: metrics.score(metric, given_N, [one.answer for one in self.held]) for metric in self.task.metrics
        }
        return each if len(each) == 1 else {" and ".join(each): statistics.fmean(each.values())} | each
