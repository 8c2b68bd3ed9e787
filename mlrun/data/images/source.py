"""Images as a Source: decoded, augmented and mixed on the fly, the same with any number of processes.

Shapes: B samples of a batch, R rows of it that are wanted, K classes, C channels, H = W = side.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mlrun.data import cache, counter_rng
from mlrun.data.images import mixup, workers
from mlrun.data.images.augment import Augment, evaluated, trained
from mlrun.data.images.collections import Pictures, Stored
from mlrun.data.images.decode import decoded
from mlrun.data.images.frame import PREPROCESSOR, Frame
from mlrun.data.images.workers import Asked, Images, Job, Sample
from mlrun.data.source import spread, tensors
from mlrun.errors import UserError, mistake

if TYPE_CHECKING:
    from PIL.Image import Image

    from mlrun.data.source import Batch


@dataclass(frozen=True)
class Recipe:
    """How pictures become batches."""

    frame: Frame
    classes: int
    augment: Augment
    mix: mixup.Mix
    seed: int

    def opened(self, picture: Stored) -> tuple[Image, int]:
        """Return a decoded picture in the model's colours; UserError for a label beyond the classes."""
        if not 0 <= picture.label < self.classes:
            raise UserError(beyond(self.classes, picture.label))
        return decoded(picture, self.frame.mode), picture.label

    def sample(self, picture: Stored, index: int | None) -> Sample:
        """Return a picture as the augmented training sample of this index; without one, as it is evaluated."""
        opened, label = self.opened(picture)
        if index is None:
            return evaluated(opened, self.frame), label
        return trained(opened, self.frame, self.augment, np.random.default_rng([self.seed, index])), label


def beyond(classes: int, label: int) -> str:
    """Return the line for a label that is none of the classes."""
    allowed = f"at least {label + 1}: a picture has label {label}" if label >= 0 else "labels of 0 and more"
    return mistake("data.classes", classes, allowed, "correct data.classes and model.classes")


@dataclass(frozen=True)
class Facts:
    """What names the training and the held-out pictures (JSON-able), remarks for the user, and names of the classes."""

    train: Any
    held_out: Any
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class ImageSource:
    """What mapped and streamed pictures share; `drawn` says which pictures the samples from `start` on are."""

    samples: int | None = None
    train: Pictures = ()  # those that `drawn` gives numbers of
    workers: int = 0
    block: int | None = None  # of a stream: pictures are shuffled within so many

    def __init__(self, recipe: Recipe, held_out: Pictures, validation_samples: int | None, facts: Facts) -> None:
        self.recipe, self.held_out, self.facts = recipe, held_out, facts
        chosen = len(held_out) if validation_samples is None else min(len(held_out), validation_samples)
        if chosen == 0:
            raise UserError("data: no picture is held out; give validation pictures or raise data.held_out")
        self.chosen = spread(len(held_out), chosen)

    def with_workers(self, count: int) -> Self:
        """Return the same source with so many processes that make its pictures, ahead; 0 makes them when asked."""
        found = copy.copy(self)
        found.workers = count
        return found

    def drawn(self, start: int, size: int) -> Iterator[Sequence[int] | Sequence[Stored]]:
        """Yield, batch by batch, the pictures that the samples from `start` on are, or their numbers in `train`."""
        raise NotImplementedError

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Yield batches from sample `start` on, for ever (see Source.batches)."""
        wanted = np.arange(size)[slice(None) if rows is None else rows]
        drawn = zip(count(start, size), self.drawn(start, size), strict=False)
        jobs = (self._training_job(first, pictures, wanted) for first, pictures in drawn)
        return workers.batches(partial(_sample, self.recipe, self.train), jobs, self.workers)

    def _training_job(self, first: int, pictures: Sequence[int] | Sequence[Stored], wanted_R: np.ndarray) -> Job:
        """Return the job that makes the wanted rows; those that they mix with are made too."""
        recipe, size = self.recipe, len(pictures)
        blend = mixup.draw(recipe.mix, recipe.frame.side, recipe.seed, first)
        partner_R = size - 1 - wanted_R if blend.share < 1 else wanted_R
        needed, place = np.unique(np.concatenate([wanted_R, partner_R]), return_inverse=True)
        own_R, other_R = np.split(place, 2)
        asked = [Asked(pictures[row], first + row) for row in needed.tolist()]
        return Job(asked, partial(self._mixed, blend, own_R, other_R))

    def _mixed(
        self, blend: mixup.Blend, own_R: np.ndarray, other_R: np.ndarray, images: Images, labels: np.ndarray
    ) -> Batch:
        own, other = ([images[row] for row in rows.tolist()] for rows in (own_R, other_R))
        if not self.recipe.mix.soft:
            return tensors({"images": np.stack(own), "labels": labels[own_R]})
        soft = mixup.distribution(labels, self.recipe.classes, self.recipe.mix.smoothing)
        return tensors({
            "images": blend.images(own, other),
            "labels": blend.labels(soft[own_R], soft[other_R]),
        })  # fmt: skip

    def validation(self, size: int) -> Iterator[Batch]:
        """Yield the held-out pictures, not augmented (see Source.validation)."""
        chunks = (self.chosen[start : start + size] for start in range(0, len(self.chosen), size))
        jobs = (Job([Asked(number) for number in chunk.tolist()], _plain) for chunk in chunks)
        return workers.batches(partial(_sample, self.recipe, self.held_out), jobs, self.workers)

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts (see Source.describe)."""
        recipe, facts = self.recipe, self.facts
        preprocessing = asdict(recipe)
        order, chosen = self._drawn_as()
        del preprocessing["seed"]  # it says which pictures are drawn, not how they are made
        return {
            "samples": self.samples,
            "validation_samples": len(self.chosen),
            "classes": recipe.classes,
            "preprocessor": recipe.frame.hf_preprocessor(),
            "content": cache.digest({"train": facts.train, "held_out": facts.held_out}),
            "identity": {
                "train": cache.digest({"pictures": facts.train} | order),
                "held_out": cache.digest({"pictures": facts.held_out} | chosen),
                "tokenizer": None,
                "preprocessing": cache.digest(preprocessing),
            },
            "held_out_documents": None,
            "copies": None,
            "notes": list(facts.notes),
            **({"labels": list(facts.labels)} if facts.labels else {}),
        }

    def _drawn_as(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what tells the order of the training pictures, and which of the held-out part are looked at.

        Of a stream these are the first, else they are spread over it.
        """
        if self.block is None:
            return {}, {"chosen": len(self.chosen)}
        return {"block": self.block}, {"first": len(self.chosen)}

    def model_files(self) -> dict[str, str]:
        """Return how pixels are made, for Hugging Face (see Source.model_files)."""
        return {PREPROCESSOR: json.dumps(self.recipe.frame.hf_preprocessor(), indent=2) + "\n"}


def _sample(recipe: Recipe, pictures: Pictures, asked: Asked) -> Sample:
    """Return a sample of a collection, or of the picture that was handed over."""
    picture = pictures[asked.picture] if isinstance(asked.picture, int) else asked.picture
    return recipe.sample(picture, asked.sample)


def _plain(images: Images, labels: np.ndarray) -> Batch:
    return tensors({"images": np.stack(images), "labels": labels})


class MappedImages(ImageSource):
    """Pictures of known number, at random access, in another order every epoch."""

    samples: int

    def __init__(
        self, recipe: Recipe, train: Pictures, held_out: Pictures, validation_samples: int | None, facts: Facts
    ) -> None:
        super().__init__(recipe, held_out, validation_samples, facts)
        self.train, self.samples = train, len(train)

    def seeded(self, seed: int) -> MappedImages:
        """Return the same pictures in the order, and with the augmentation, of another seed."""
        found = copy.copy(self)
        found.recipe = replace(self.recipe, seed=seed)
        return found

    def drawn(self, start: int, size: int) -> Iterator[list[int]]:
        """Yield the pictures in the order of their epochs."""
        for first in count(start, size):
            index_B = np.arange(first, first + size)
            yield counter_rng.epoch_order(index_B, self.samples, self.recipe.seed).tolist()


class StreamedImages(ImageSource):
    """Pictures that arrive in the order of a stream, shuffled in blocks; `stream(start)` yields them."""

    def __init__(
        self,
        recipe: Recipe,
        stream: Callable[[int], Iterator[Stored]],
        held_out: list[Stored],
        facts: Facts,
        block: int,
    ) -> None:
        super().__init__(recipe, held_out, None, facts)
        self.stream = stream
        self.block = block

    def drawn(self, start: int, size: int) -> Iterator[list[Stored]]:
        """Yield the pictures as they come."""
        stream = self.stream(start)
        while True:
            yield list(islice(stream, size))
