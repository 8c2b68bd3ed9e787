"""What all image data has in common: its settings, their cheap checks, and how it opens. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from mlrun.data.images.augment import Augment
from mlrun.data.images.frame import Frame
from mlrun.data.images.mixup import Mix
from mlrun.data.source import Source
from mlrun.errors import UserError, mistake
from mlrun.files import expanded

if TYPE_CHECKING:
    from mlrun.data.images.source import ImageSource, Recipe
    from mlrun.models.base import Model


@dataclass(frozen=True, kw_only=True)
class Images(ABC):
    """Labelled pictures, resized to what the model reads. The comments in conf/data say what each setting means."""

    # A picture is one thing to read; the model counts its own patches.
    sequence: ClassVar[int] = 1

    classes: int = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING
    eval_crop: float = 1.0
    validation_samples: int | None = None
    augment: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)

    @abstractmethod
    def source_problems(self) -> list[str]:
        """Return what is wrong with where the pictures come from."""

    @abstractmethod
    def pictures(self, recipe: Recipe, cache: Path) -> ImageSource:
        """Open the pictures."""

    def targets(self, model: Model) -> int:
        """Return how many predictions a sample asks for."""
        return 1

    def sequences(self, model: Model) -> dict[int, int]:
        """Return no length that a stage may ask for: a picture has its own."""
        return {}

    def problems(self, model: Model) -> list[str]:
        """Return what can be known to be wrong without reading the data, one line each."""
        if model.objective != "image":
            remedy = "choose a text data set (data=sotu, data=text, ...) or an image model"
            return [mistake("data", type(self).__name__, f"text for objective {model.objective}", remedy)]
        sizes = model.sizes()
        channels, cap = sizes["channel"], self.validation_samples
        checks = [
            ("classes", self.classes == sizes["classes"], f"model.classes={sizes['classes']}"),
            ("mean", len(self.mean) == channels, f"{channels} numbers, one a channel of the model"),
            ("std", len(self.std) == channels and all(s > 0 for s in self.std), f"{channels} numbers over 0"),
            ("mean", len(self.mean) in {1, 3}, "1 number (grey) or 3 (colour)"),
            ("eval_crop", 0 < self.eval_crop <= 1, "over 0, at most 1"),
            ("validation_samples", cap is None or cap >= 1, "null or at least 1"),
        ]
        settings = [
            mistake(f"data.{name}", getattr(self, name), allowed, "correct it, or the model's side of it")
            for name, good, allowed in checks
            if not good
        ]
        return [*settings, *self.augment.problems(), *self.mix.problems(), *self.source_problems()]

    def open(self, model: Model, seed: int, cache: str, batch: int = 1) -> Source:
        """Open the pictures; `batch` is the least a training epoch must hold.

        `problems` comes first. Raises UserError for everything that only reading shows.
        """
        from mlrun.data.images.source import Recipe

        frame = Frame(model.sizes()["image"], list(self.mean), list(self.std), self.eval_crop)
        recipe = Recipe(frame, self.classes, self.augment, self.mix, seed)
        source = self.pictures(recipe, expanded(cache))
        if source.samples is not None and source.samples < batch:
            raise UserError(f"data: {source.samples} training pictures, fewer than one batch={batch}; lower batch")
        return source
