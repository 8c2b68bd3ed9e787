"""What all text has in common: its settings, their cheap checks, and how it opens. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.data.source import Source
from mlrun.data.text import prepare, tokenizer
from mlrun.data.text.corpus import Corpus
from mlrun.data.text.objectives import SHORTEST, SpanSizes, masked_count, shorter, span_sizes
from mlrun.data.text.prepare import ModelSide, Recipe
from mlrun.errors import UserError, mistake, mistakes
from mlrun.files import expanded

if TYPE_CHECKING:
    from mlrun.models.base import Model

OBJECTIVES = ("causal", "mlm", "span")


@dataclass(frozen=True, kw_only=True)
class Text(ABC):
    """Text that follows the model's objective. The comments in conf/data say what each setting means."""

    sequence: int = 128
    tokenizer: str | None = None
    end: str | None = None
    tokenizer_characters: int = 200_000_000
    mask_rate: float = 0.15
    mask_span: float = 3.0
    validation_samples: int | None = None
    within_documents: bool = False

    @abstractmethod
    def corpus(self) -> Corpus:
        """Return the documents; opens nothing yet."""

    @abstractmethod
    def source_problems(self) -> list[str]:
        """Return what is wrong with where the documents come from."""

    def targets(self, model: Model) -> int:
        """Return how many tokens are predicted per sample."""
        if model.objective == "mlm":
            return masked_count(self.sequence, self.mask_rate)
        if model.objective == "span":
            return self._span_sizes().targets
        return self.sequence

    def sequences(self, model: Model) -> dict[int, int]:
        """Return the lengths of samples that a stage may read, each with how many of them one of `sequence` gives.

        Where documents are kept apart there is one length: where they end is known of whole windows only.
        """
        if self.within_documents:
            return {self.sequence: 1}
        return shorter(model.objective, self.sequence, self.mask_rate, self.mask_span)

    def problems(self, model: Model) -> list[str]:
        """Return what can be known to be wrong without reading the data, one line each."""
        if model.objective not in OBJECTIVES:
            remedy = "choose an image data set (data=digits, data=cifar10, ...) or a language model"
            return [mistake("data", type(self).__name__, f"images for objective {model.objective}", remedy)]
        settings = self._setting_problems()
        if self.within_documents and not model.within_documents:
            remedy = f"{type(model).__name__} does not tell documents apart"
            settings.append(mistake("data.within_documents", True, "false with this model", remedy))
        fit = [] if settings else self._fit_problems(model)
        return [*settings, *self.source_problems(), *fit]

    def _setting_problems(self) -> list[str]:
        cap = self.validation_samples
        checks = [
            ("sequence", self.sequence >= SHORTEST, f"at least {SHORTEST} tokens"),
            ("mask_rate", 0 < self.mask_rate < 1, "over 0 and under 1"),
            ("mask_span", self.mask_span >= 1, "at least 1 token"),
            ("tokenizer_characters", self.tokenizer_characters >= 1, "at least 1"),
            ("end", self.end is None or self.tokenizer is not None, "null with a tokenizer that is trained here"),
            ("validation_samples", cap is None or cap >= 1, "null or at least 1"),
        ]
        return mistakes("data.", ((name, getattr(self, name), good, allowed) for name, good, allowed in checks))

    def _fit_problems(self, model: Model) -> list[str]:
        found = []
        position = model.sizes().get("position")
        if position is not None and self.sequence > position:
            allowed = f"at most model.position={position}"
            found.append(mistake("data.sequence", self.sequence, allowed, "shorten it or set model.position"))
        if self.targets(model) < 1:
            found.append(mistake("data.mask_rate", self.mask_rate, "enough to mask one token", "raise it"))
        if model.objective == "span" and not self._span_sizes().possible:
            remedy = "lower it, or raise data.mask_span"
            found.append(mistake("data.mask_rate", self.mask_rate, "little enough to keep text between spans", remedy))
        return found + self._tokenizer_problems(model)

    def _tokenizer_problems(self, model: Model) -> list[str]:
        vocab, objective = model.sizes()["vocab"], model.objective
        try:
            size = None if self.tokenizer is None else tokenizer.given_size(self.tokenizer)
        except UserError as error:
            return error.problems
        least = tokenizer.smallest(objective, self._sentinels(model))
        if self.tokenizer is None and vocab < least:
            allowed = f"at least {least} for a byte-level tokenizer"
            return [mistake("model.vocab", vocab, allowed, "enlarge it or give data.tokenizer")]
        return [tokenizer.too_small(size, vocab)] if size is not None and size > vocab else []

    def _sentinels(self, model: Model) -> int:
        return self._span_sizes().spans if model.objective == "span" else 0

    def _span_sizes(self) -> SpanSizes:
        return span_sizes(self.sequence, self.mask_rate, self.mask_span)

    @property
    def recipe(self) -> Recipe:
        """Return how documents become samples."""
        return Recipe(
            self.sequence,
            self.tokenizer,
            self.tokenizer_characters,
            self.mask_rate,
            self.mask_span,
            self.validation_samples,
            self.end,
            self.within_documents,
        )

    def open(self, model: Model, seed: int, cache: str, batch: int = 1) -> Source:
        """Prepare the data in the folder `cache` and return it; `batch` is the least a training epoch must hold.

        `problems` comes first. Raises UserError for everything that only reading shows.
        """
        vocab, sentinels = model.sizes()["vocab"], self._sentinels(model)
        return self.prepare(ModelSide(model.objective, vocab, sentinels, seed, batch, expanded(cache)))

    def prepare(self, model_side: ModelSide) -> Source:
        """Return the data as packed windows; a stream overrides it."""
        return prepare.packed(self.corpus(), self.recipe, model_side)
