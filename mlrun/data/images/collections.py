"""Pictures with class numbers, decoded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlrun.errors import UserError, mistake

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

Opener = Callable[[], "tuple[Image, int]"]


class Pictures(Protocol):
    """A collection of known size."""

    def __len__(self) -> int: ...

    def take(self, number: int) -> tuple[Image, int]:
        """Return one picture, in its own colours, and its class."""


@dataclass(frozen=True)
class ArrayPictures:
    """Pictures in memory: uint8 (N, H, W) grey levels, and N labels."""

    pixels_NHW: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, number: int) -> tuple[Image, int]:
        from PIL import Image

        return Image.fromarray(self.pixels_NHW[number]), int(self.labels_N[number])


@dataclass(frozen=True)
class Columns:
    """Where a data set's rows keep the picture and its class."""

    image: str
    label: str

    def read(self, row: Mapping[str, Any], number: int) -> tuple[Image, int]:
        """Decode a row; UserError when the picture is broken or the label is no number."""
        from PIL import Image

        content, label = row[self.image], row[self.label]
        if not isinstance(label, int):
            raise UserError(mistake("data.label", self.label, "a column of class numbers", f"row {number}: {label!r}"))
        try:
            picture = Image.open(content["path"] if content["bytes"] is None else BytesIO(content["bytes"]))
            picture.load()
        except (OSError, SyntaxError) as error:
            name = content["path"] or f"in row {number}"
            raise UserError(f"data: the picture {name} cannot be read ({error}); repair or remove it") from error
        return picture, label


@dataclass(frozen=True)
class DatasetPictures:
    """Rows of a `datasets.Dataset` with undecoded pictures; `numbers` are those that belong to this part."""

    dataset: Dataset
    columns: Columns
    numbers: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, number: int) -> tuple[Image, int]:
        row = int(self.numbers[number])
        return self.columns.read(self.dataset[row], row)


@dataclass(frozen=True)
class RowPictures:
    """Undecoded rows in memory."""

    rows: list[dict[str, Any]]
    columns: Columns

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, number: int) -> tuple[Image, int]:
        return self.columns.read(self.rows[number], number)
