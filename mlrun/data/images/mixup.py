"""Mixup (Zhang et al. 2017), CutMix (Yun et al. 2019) and label smoothing on a whole batch, as in DeiT.

Sample i mixes with sample B-1-i. The draw depends on (seed, the batch's first sample) only, so a process that
needs some rows of the batch makes the same rows as one that makes all. Shapes: B samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlrun.errors import mistake

Box = tuple[slice, slice]


@dataclass  # not frozen: OmegaConf takes a frozen dataclass inside another for read-only
class Mix:
    """The switches: beta parameters of mixup and cutmix (0: off), how often, how often cutmix of the two."""

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def problems(self) -> list[str]:
        """Return what is out of range."""
        most = {"mixup": math.inf, "cutmix": math.inf, "probability": 1, "switch": 1, "smoothing": 0.99}
        return [
            mistake(f"data.mix.{name}", getattr(self, name), f"0 to {most[name]}", "correct the value")
            for name in most
            if not 0 <= getattr(self, name) <= most[name]
        ]

    @property
    def soft(self) -> bool:
        """Say whether labels are distributions over the classes rather than class numbers."""
        return self.smoothing > 0 or (self.probability > 0 and (self.mixup > 0 or self.cutmix > 0))


@dataclass(frozen=True)
class Blend:
    """How one batch mixes: `share` of each sample itself, the rest of its partner; a box for cutmix."""

    share: float = 1.0
    box: Box | None = None

    def images(self, own: Sequence[np.ndarray], partner: Sequence[np.ndarray]) -> np.ndarray:
        """Return the mixed images (B, C, H, W) of B images each, made one at a time: it stays in the cache."""
        mixed_BCHW = np.empty((len(own), *own[0].shape), np.float32)
        for mixed_CHW, own_CHW, partner_CHW in zip(mixed_BCHW, own, partner, strict=True):
            if self.box is None:
                np.multiply(own_CHW, np.float32(self.share), out=mixed_CHW)
                np.add(mixed_CHW, partner_CHW * np.float32(1 - self.share), out=mixed_CHW)
            else:
                mixed_CHW[:] = own_CHW
                mixed_CHW[(..., *self.box)] = partner_CHW[(..., *self.box)]
        return mixed_BCHW

    def labels(self, own_BK: np.ndarray, partner_BK: np.ndarray) -> np.ndarray:
        """Return the mixed label distributions."""
        return (own_BK * self.share + partner_BK * (1 - self.share)).astype(np.float32)


def draw(mix: Mix, side: int, seed: int, first: int) -> Blend:
    """Return how the batch that starts with sample `first` mixes."""
    rng = np.random.default_rng([seed, first, 1])  # the 1 keeps it apart from the samples' own generators
    if rng.random() >= mix.probability or (mix.mixup == 0 and mix.cutmix == 0):
        return Blend()
    if mix.mixup == 0 or (mix.cutmix > 0 and rng.random() < mix.switch):
        return _cut(rng.beta(mix.cutmix, mix.cutmix), side, rng)
    return Blend(float(rng.beta(mix.mixup, mix.mixup)))


def _cut(share: float, side: int, rng: np.random.Generator) -> Blend:
    """Return a cut of about `1 - share` of the area around a random centre, its share corrected at the border."""
    half = int(side * math.sqrt(1 - share)) // 2
    low = np.clip((centre := rng.integers(side, size=2)) - half, 0, side)
    high = np.clip(centre + half, 0, side)
    box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    return Blend(1 - float(np.prod(high - low)) / side**2, box)


def distribution(labels_B: np.ndarray, classes: int, smoothing: float) -> np.ndarray:
    """Return (B, K) float32: `smoothing` spread over all classes, the rest on the label."""
    return (np.eye(classes)[labels_B] * (1 - smoothing) + smoothing / classes).astype(np.float32)
