"""Images as a Source: decoded, augmented and mixed on the fly, the same with any number of worker threads.

Shapes: B samples of a batch, R rows of it that are wanted, K classes, C channels, H = W = side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mlrun.data import counter_rng
from mlrun.data.images import mixup
from mlrun.data.images.augment import Augment, evaluated, trained
from mlrun.data.images.collections import Opener, Pictures
from mlrun.data.images.frame import Frame
from mlrun.data.source import spread, tensors
from mlrun.errors import UserError, mistake

if TYPE_CHECKING:
    from PIL.Image import Image

    from mlrun.data.source import Batch

Sample = tuple[np.ndarray, int]
Job = tuple[list[Callable[[], Sample]], Callable[[list[Sample]], "Batch"]]


@dataclass(frozen=True)
class Recipe:
    """How pictures become batches."""

    frame: Frame
    classes: int
    augment: Augment
    mix: mixup.Mix
    workers: int
    seed: int

    def opened(self, take: Opener) -> tuple[Image, int]:
        """Return a decoded picture in the model's colours; UserError for a label beyond the classes."""
        picture, label = take()
        if not 0 <= label < self.classes:
            raise UserError(mistake("data.classes", self.classes, f"at least {label + 1}: a picture has label {label}",
                                    "correct data.classes and model.classes"))  # fmt: skip
        return picture.convert(self.frame.mode), label

    def training(self, take: Opener, index: int) -> Sample:
        """Return the augmented sample of this number."""
        picture, label = self.opened(take)
        return trained(picture, self.frame, self.augment, np.random.default_rng([self.seed, index])), label

    def evaluation(self, take: Opener) -> Sample:
        """Return the sample as it is evaluated."""
        picture, label = self.opened(take)
        return evaluated(picture, self.frame), label


class ImageSource:
    """What mapped and streamed pictures share; `takes` says which pictures the samples from `start` on are."""

    samples: int | None = None

    def __init__(self, recipe: Recipe, held_out: Pictures, validation_samples: int | None) -> None:
        self.recipe, self.held_out = recipe, held_out
        chosen = len(held_out) if validation_samples is None else min(len(held_out), validation_samples)
        if chosen == 0:
            raise UserError("data: no picture is held out; give validation pictures or raise data.held_out")
        self.chosen = spread(len(held_out), chosen)

    def takes(self, start: int, size: int) -> Iterator[list[Opener]]:
        """Yield, batch by batch, how to get the pictures of the samples from `start` on."""
        raise NotImplementedError

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Yield batches from sample `start` on, for ever (see Source.batches)."""
        wanted = np.arange(size)[slice(None) if rows is None else rows]
        pairs = zip(count(start, size), self.takes(start, size), strict=False)
        return self._run(self._training_job(first, takes, wanted) for first, takes in pairs)

    def _training_job(self, first: int, takes: list[Opener], wanted_R: np.ndarray) -> Job:
        """Return the samples that the wanted rows need, partners included, and how to put them together."""
        recipe, size = self.recipe, len(takes)
        blend = mixup.draw(recipe.mix, recipe.frame.side, recipe.seed, first)
        partner_R = size - 1 - wanted_R if blend.share < 1 else wanted_R
        needed, place = np.unique(np.concatenate([wanted_R, partner_R]), return_inverse=True)
        own_R, other_R = np.split(place, 2)
        samples: list[Callable[[], Sample]] = [partial(recipe.training, takes[row], first + int(row)) for row in needed]
        return samples, lambda made: self._mixed(made, blend, own_R, other_R)

    def _mixed(self, made: list[Sample], blend: mixup.Blend, own_R: np.ndarray, other_R: np.ndarray) -> Batch:
        images, labels = np.stack([image for image, _ in made]), np.array([label for _, label in made])
        if not self.recipe.mix.soft:
            return tensors({"images": images[own_R], "labels": labels[own_R]})
        soft = mixup.distribution(labels, self.recipe.classes, self.recipe.mix.smoothing)
        return tensors({
            "images": blend.images(images[own_R], images[other_R]),
            "labels": blend.labels(soft[own_R], soft[other_R]),
        })  # fmt: skip

    def validation(self, size: int) -> Iterator[Batch]:
        """Yield the held-out pictures, not augmented (see Source.validation)."""
        chunks = (self.chosen[start : start + size] for start in range(0, len(self.chosen), size))
        return self._run(self._validation_job(chunk) for chunk in chunks)

    def _validation_job(self, numbers: np.ndarray) -> Job:
        takes = (partial(self.held_out.take, int(number)) for number in numbers)
        return [partial(self.recipe.evaluation, take) for take in takes], _stacked

    def _run(self, jobs: Iterator[Job]) -> Iterator[Batch]:
        """Yield the batches of jobs in order; with workers, the next batch is made while this one is used."""
        if self.recipe.workers == 0:
            yield from (finish([sample() for sample in samples]) for samples, finish in jobs)
            return
        with ThreadPoolExecutor(self.recipe.workers) as pool, closing(_ahead(jobs, pool)) as made:
            yield from made

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts."""
        recipe = self.recipe
        counts = {"samples": self.samples, "validation_samples": len(self.chosen), "classes": recipe.classes}
        return counts | {"preprocessor": recipe.frame.hf_preprocessor()}


def _ahead(jobs: Iterator[Job], pool: ThreadPoolExecutor) -> Generator[Batch, None, None]:
    waiting: deque[tuple[list[Future[Sample]], Callable[[list[Sample]], Batch]]] = deque()
    for samples, finish in jobs:
        waiting.append(([pool.submit(sample) for sample in samples], finish))
        if len(waiting) > 1:
            futures, done = waiting.popleft()
            yield done([future.result() for future in futures])
    for futures, done in waiting:
        yield done([future.result() for future in futures])


def _stacked(made: list[Sample]) -> Batch:
    return tensors({"images": np.stack([image for image, _ in made]), "labels": np.array([label for _, label in made])})


class MappedImages(ImageSource):
    """Pictures of known number, at random access, in another order every epoch."""

    samples: int

    def __init__(self, recipe: Recipe, train: Pictures, held_out: Pictures, validation_samples: int | None) -> None:
        super().__init__(recipe, held_out, validation_samples)
        self.train, self.samples = train, len(train)

    def takes(self, start: int, size: int) -> Iterator[list[Opener]]:
        """Yield the pictures in the order of their epochs."""
        for first in count(start, size):
            number_B = counter_rng.epoch_order(np.arange(first, first + size), self.samples, self.recipe.seed)
            yield [partial(self.train.take, int(number)) for number in number_B]


class StreamedImages(ImageSource):
    """Pictures that arrive in the order of a stream, shuffled in blocks; `stream(start)` yields them."""

    def __init__(
        self, recipe: Recipe, stream: Callable[[int], Iterator[Opener]], held_out: Pictures, validation_samples: int
    ) -> None:
        super().__init__(recipe, held_out, validation_samples)
        self.stream = stream

    def takes(self, start: int, size: int) -> Iterator[list[Opener]]:
        """Yield the pictures as they come."""
        stream = self.stream(start)
        while True:
            yield list(islice(stream, size))
