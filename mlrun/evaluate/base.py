"""What every evaluation is: numbers about a network, at the evaluations of a run and once it is done.

Many are means over the held-out set: one pass over it serves them all. Others have data of their own and take longer:
a run measures them where a stage or a branch ends. No torch at import.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from mlrun.errors import UserError, mistake
from mlrun.files import sha256
from mlrun.models.base import IGNORED, Model

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.config.settings import Hardware
    from mlrun.evaluate.words import Words
    from mlrun.models.network import Network
    from mlrun.train.parallel.processes import Ranks

    Batch = Mapping[str, Tensor]

# By name (mean, how many it is the mean over).
Means = Mapping[str, tuple[float, int]]

# Is told what is measured, how many pieces of work are done, and of how many (None: not known).
Tell = Callable[[str, int, int | None], None]


def untold(what: str, done: int, of: int | None) -> None:
    """Tell nobody."""


# The value that has the loss of the held-out set, and by which name records and reports know it.
HELD_OUT, LOSS, ERROR = "held_out", "loss", "standard_error"


@dataclass(frozen=True)
class Result:
    """One number about a model.

    metric: what is counted, such as `accuracy` or `bits_per_byte`.
    stderr: the standard error of the value, in its unit; None where nothing tells it.
    n: how many things (samples, pairs, words, bytes) the value is over.
    version: raised when the way of measuring changes, so that numbers of two versions are not compared.
    interval: 95% interval, where one is known that is better than two standard errors.
    about: what else is to be known of the value, by name, as JSON; for results of a fine-tuning see `finetune`.
    settings: digest of how it was measured, so that numbers of two ways are not compared; None where there is one way.
    """

    metric: str
    value: float
    stderr: float | None = None
    n: int | None = None
    version: int | float | str = 1
    interval: tuple[float, float] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    settings: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what files hold of it; what is not finite is unknown there."""
        value, error = (x if x is not None and math.isfinite(x) else None for x in (self.value, self.stderr))
        said = {"metric": self.metric, "value": value, "stderr": error, "n": self.n, "version": self.version}
        told = {"interval": None if self.interval is None else list(self.interval), "settings": self.settings}
        return said | {key: one for key, one in told.items() if one is not None} | dict(self.about)


# By the name of the task.
Results = Mapping[str, Result]


@dataclass(frozen=True)
class Context:
    """What an evaluation may use beside the network.

    source: open data with the held-out set; None where no evaluation asked for it.
    batch: samples of one forward pass.
    pause: raises Stopped if a signal asks for it. What takes long calls it, on all processes, between pieces of work,
        best by `reached`, so that whoever waits sees how far it is.
    words: how text becomes the ids of this model; None where no tokenizer lies beside it.
    cache: where prepared data is kept.
    what: the name of what is measured; a prefix of it before an evaluation has begun.
    tell: is told that name and how far it is; for people alone.
    """

    source: Any
    batch: int
    hardware: Hardware
    ranks: Ranks
    pause: Callable[[], None] = lambda: None
    words: Words | None = None
    cache: str = "~/.cache/mlrun"
    what: str = ""
    tell: Tell = untold

    def about(self, what: str) -> Context:
        """Return the same for what has this name, and say that it begins."""
        self.tell(what, 0, None)
        return replace(self, what=what)

    def reached(self, done: int, of: int | None) -> None:
        """Say how many pieces of work are done, and pause; all processes call it."""
        self.tell(self.what, done, of)
        self.pause()


@dataclass(frozen=True)
class Evaluation(ABC):
    """Numbers about a network; `version` is that of its results."""

    version: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """Return what people are told it is: `TextPerplexity` is text_perplexity."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def settings(self) -> str:
        """Return a digest of the settings, and of what is in the files that it reads."""
        whole = [repr(self), *map(sha256, self.reads())]
        return hashlib.sha256("".join(whole).encode()).hexdigest()[:16]

    def reads(self) -> list[str]:
        """Return the files that it reads beside the run's data."""
        return []

    def problems(self) -> list[str]:
        """Return what is wrong with the settings, one line each."""
        return []

    def applies(self, model: Model) -> bool:
        """Return whether the numbers make sense for a model; one of another objective is passed over."""
        return True

    def unfit(self, model: Model, words: Words | None) -> list[str]:
        """Return what is wrong with the settings for a model, one line each; asked before any work.

        `words` are not None if `needs_words`.
        """
        return []

    @abstractmethod
    def measure(self, net: Network, context: Context) -> Results:
        """Return {task: result}. All processes call it and return the same."""


@dataclass(frozen=True)
class Benchmark(Evaluation):
    """What has data of its own and is told nothing of the run's: measured where a stage or a branch ends.

    `needs_words` says that it reads text, for which the model needs a tokenizer.
    """

    needs_words: ClassVar[bool] = True


@dataclass(frozen=True)
class HeldOutMeans(Evaluation):
    """Means over the held-out set; `measure` of a whole list reads it once.

    A batch of text has, beside what the model reads, `bytes` (B,), where the tokenizer tells them: of the text that
    each sample's labels stand for.
    """

    @abstractmethod
    def of_batch(self, model: Model, batch: Batch, loss: Tensor, logits: Tensor) -> Means:
        """Return by name (mean over one batch, how many it is the mean over); the loss is the mean over its labels."""

    def of_all(self, means: dict[str, float], count: int) -> Results:
        """Return what is reported of the means over the whole set, which has `count` samples."""
        return {name: Result(name, mean, n=count, version=self.version) for name, mean in means.items()}

    @final
    def measure(self, net: Network, context: Context) -> Results:
        return measure([self], net, context)


def measure(evaluations: Iterable[Evaluation], net: Network, context: Context) -> dict[str, Result]:
    """Return the results of all evaluations that apply; all processes call it."""
    fitting = [evaluation for evaluation in evaluations if evaluation.applies(net.model)]
    shared = [evaluation for evaluation in fitting if isinstance(evaluation, HeldOutMeans)]
    found: dict[str, Result] = {}
    means, count = _means(shared, net, context.about(f"{context.what}{HELD_OUT}")) if shared else ([], 0)
    for one, own in zip(shared, means, strict=True):
        found = _joined(found, one.of_all(own, count), one)
    for evaluation in fitting:
        if not isinstance(evaluation, HeldOutMeans):
            told = evaluation.measure(net, context.about(f"{context.what}{evaluation.name}"))
            digest = evaluation.settings  # which reads its files
            measured = {task: replace(result, settings=digest) for task, result in told.items()}
            found = _joined(found, measured, evaluation)
    return found


def _joined(found: dict[str, Result], more: Results, evaluation: Evaluation) -> dict[str, Result]:
    """Return both; UserError for a name that has another number, here or in a record."""
    if again := [task for task in more if task in {*found, LOSS, ERROR}]:
        remedy = f"{again[0]} is another number: call it otherwise in {type(evaluation).__name__}"
        raise UserError(mistake("evaluation", again[0], "a name of its own for each number", remedy))
    return found | dict(more)


def unfit(evaluations: Iterable[Evaluation], model: Model, words: Words | None) -> list[str]:
    """Return what is wrong with evaluations for a model; `words` are None where no tokenizer lies beside it."""
    fitting = [one for one in evaluations if one.applies(model)]
    remedy = "it reads text: leave it out, or put the tokenizer beside the model"
    without = [
        mistake("evaluation", type(one).__name__, "what needs no tokenizer", remedy)
        for one in fitting
        if words is None and isinstance(one, Benchmark) and one.needs_words
    ]
    return without or [line for one in fitting for line in one.unfit(model, words)]


def values(results: Results) -> dict[str, float]:
    """Return the values by task, as a record of the log has them: the held-out loss as `loss`, with its error."""
    found = {LOSS if task == HELD_OUT else task: result.value for task, result in results.items()}
    error = results[HELD_OUT].stderr if HELD_OUT in results else None
    return found if error is None else found | {ERROR: error}


def as_dict(results: Results, prefix: str = "") -> dict[str, Any]:
    """Return the results as files hold them: {task: {metric, value, stderr, n, version}}."""
    return {f"{prefix}{task}": result.as_dict() for task, result in results.items()}


def recorded(found: Mapping[str, Results], whole: bool) -> dict[str, Any]:
    """Return what a record of the log has of results, given by what stands before their names.

    Their values; and where they are measured as a `whole`, also all that is known of them, as `results`.
    """
    kept = {f"{of}{name}": value for of, own in found.items() for name, value in values(own).items()}
    if not whole:
        return kept
    return kept | {"results": {task: one for of, own in found.items() for task, one in as_dict(own, of).items()}}


def _means(evaluations: Sequence[HeldOutMeans], net: Network, context: Context) -> tuple[list[dict[str, float]], int]:
    """Return the means of each evaluation over the held-out set, whose batches the processes share, and its samples."""
    import torch

    from mlrun.train.loop import autocast, samples

    ranks, seen = context.ranks, []
    net.eval()
    try:
        for batch, counts in _shared_out(context):
            here = {key: value.to(ranks.device) for key, value in _with_bytes(batch, context).items()}
            with torch.no_grad(), autocast(context.hardware, ranks.device):
                loss, logits = net.loss_and_logits(here)
                found = [_numbers(one, one.of_batch(net.model, here, loss, logits)) for one in evaluations]
            if counts:
                seen.append((samples(batch), found))
    finally:
        ranks.placement.reshard(net.train())
    everywhere = ranks.together(lambda: seen)
    means = [
        _over_all([[(size, found[number]) for size, found in part] for part in everywhere])
        for number in range(len(evaluations))
    ]
    return means, sum(size for part in everywhere for size, _ in part)


def _numbers(evaluation: HeldOutMeans, told: Any) -> Means:
    """Return what `of_batch` told as plain numbers; UserError for anything else, which files cannot hold."""
    try:
        return {str(name): (float(mean), int(count)) for name, (mean, count) in told.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError):
        remedy = "correct what it returns"
        given = f"{type(told).__name__} from {type(evaluation).__name__}.of_batch"
        raise UserError(mistake("evaluation", given, "{name: (mean, how many it is the mean over)}", remedy)) from None


def _with_bytes(batch: Batch, context: Context) -> Batch:
    """Return a batch with the bytes of text that the labels of each sample stand for, where they are known."""
    widths = None if context.words is None else context.words.widths
    if widths is None or batch["labels"].is_floating_point():
        return batch
    import torch

    labels = batch["labels"]
    bytes_BS = torch.from_numpy(widths)[labels.clamp(min=0)] * (labels != IGNORED)
    return {**batch, "bytes": bytes_BS.sum(-1)}


def _over_all(processes: Sequence[Sequence[tuple[int, Means]]]) -> dict[str, float]:
    """Return by name the mean over all batches, given (samples, means) of each batch by process.

    A batch weighs its samples, corrected by what it counts more or less than an average one: bitwise the mean over
    samples where each counts alike.
    """
    batches = [batch for process in processes for batch in process]
    total = sum(size for size, _ in batches)
    means = {}
    for name in batches[0][1]:
        counted = sum(found[name][1] for _, found in batches)
        sums = [
            sum((mean * (count * total / counted) for mean, count in (found[name] for _, found in process)), 0.0)
            for process in (processes if counted else ())
        ]
        means[name] = sum(sums) / total if counted else math.nan
    return means


def _shared_out(context: Context) -> Iterator[tuple[Batch, bool]]:
    """Yield this process's share of the held-out batches, and whether each counts.

    Where forward passes are collective, a process that has none left takes part with one that does not count.
    """
    ranks, index, spare = context.ranks, -1, None
    samples = context.source.describe().get("validation_samples")
    count = None if samples is None else math.ceil(samples / context.batch)
    for index, batch in enumerate(context.source.validation(context.batch)):
        if index % ranks.world == 0:
            context.reached(index, count)
            spare = batch
        if index % ranks.world == ranks.rank:
            yield batch, True
    if ranks.placement.collective and spare is not None and index % ranks.world < ranks.rank:
        yield spare, False
