"""Local pictures: Parquet files with an image column, or folders with a subfolder per class."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import MISSING

from mlrun.data import cache as cached
from mlrun.data.held_out import held_out
from mlrun.data.images.spec import Images
from mlrun.data.paths import local_problems, resolve, with_folders
from mlrun.errors import UserError, mistake

if TYPE_CHECKING:
    from datasets import Dataset

    from mlrun.data.images.collections import DatasetPictures
    from mlrun.data.images.source import ImageSource, Recipe

FORMATS = ("parquet", "imagefolder")


def undecoded(dataset: Dataset, image: str, label: str) -> Dataset:
    """Return the two columns, pictures as they are stored; UserError when one is missing or holds no pictures."""
    from datasets import Image

    from mlrun.data import huggingface

    for column, key in ((image, "data.image"), (label, "data.label")):
        huggingface.check_column(dataset, column, key, "the data")
    try:
        return dataset.select_columns([image, label]).cast_column(image, Image(decode=False))
    except Exception as error:  # `datasets` and pyarrow raise many kinds for a column that is no picture
        reason = str(error).splitlines()[0]
        raise UserError(mistake("data.image", image, "a column of pictures", f"name it ({reason})")) from error


def parts(
    train: Dataset, other: Dataset | None, share: float, image: str, label: str
) -> tuple[DatasetPictures, DatasetPictures]:
    """Return training and held-out pictures: two data sets, or an evenly spread share of one held out."""
    from mlrun.data.images.collections import Columns, DatasetPictures

    columns = Columns(image, label)
    if other is not None:
        first, second = (undecoded(dataset, image, label) for dataset in (train, other))
        return (
            DatasetPictures(first, columns, range(len(first))),
            DatasetPictures(second, columns, range(len(second))),
        )
    out_N = np.array([held_out(number, share) for number in range(len(train))], bool)
    plain = undecoded(train, image, label)
    return (
        DatasetPictures(plain, columns, np.flatnonzero(~out_N)),
        DatasetPictures(plain, columns, np.flatnonzero(out_N)),
    )


@dataclass(frozen=True, kw_only=True)
class ImageFiles(Images):
    """The `_target_` of conf/data/cifar10.yaml and imagefolder.yaml."""

    files: list[str] = MISSING
    format: str = MISSING
    validation_files: list[str] = field(default_factory=list)
    image: str = "image"
    label: str = "label"
    held_out: float = 0.05

    def source_problems(self) -> list[str]:
        files, validation_files = with_folders(self.files), with_folders(self.validation_files)
        return local_problems(self.format, FORMATS, files, validation_files, self.held_out)

    def pictures(self, recipe: Recipe, cache: Path) -> ImageSource:
        from mlrun.data import huggingface
        from mlrun.data.images.source import MappedImages

        files = {"train": resolve(with_folders(self.files))}
        if self.validation_files:
            files["validation"] = resolve(with_folders(self.validation_files))
        options: dict[str, object] = {"drop_labels": False} if self.format == "imagefolder" else {}
        where = cache / "images" / cached.digest(self._key(files))
        loaded = huggingface.load(
            "data.files", self.files[0], self.format, data_files=files, cache_dir=str(where), **options
        )
        train, held = parts(loaded["train"], loaded.get("validation"), self.held_out, self.image, self.label)
        return MappedImages(recipe, train, held, self.validation_samples)

    def _key(self, files: dict[str, list[str]]) -> dict[str, object]:
        """Return what names the copy that `datasets` keeps: contents of Parquet files, names of pictures.

        Pictures themselves stay where they are and are read anew each time.
        """
        facts = cached.file_facts if self.format == "parquet" else list
        return {"format": self.format, **{part: facts(names) for part, names in files.items()}}
