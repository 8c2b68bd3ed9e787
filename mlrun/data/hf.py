"""Hugging Face `datasets` behind one door: nothing runs remote code, and a failure is one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlrun.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

OFFLINE = "go online, or run once online so that it is in the Hugging Face cache, or use local files (data=parquet)"
WRONG = "correct its path, name, split or revision"
FAILURES = (OSError, ValueError, RuntimeError)  # what `datasets` raises for whatever goes wrong


def load(key: str, label: str, path: str, **settings: Any) -> Dataset | IterableDataset:
    """Return one split by `datasets.load_dataset`; UserError when it is unreachable or not there."""
    import datasets

    try:
        return datasets.load_dataset(path, **settings)
    except FAILURES as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = OFFLINE if _unreachable(error) else WRONG
        raise UserError(f"{key}: {label} cannot be loaded ({reason}); {remedy}") from error


def _unreachable(error: BaseException) -> bool:
    """Say whether the hub could not be reached, as against reached in vain."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, ConnectionError | OfflineModeIsEnabled) or "offline" in str(error).lower()


def check_column(dataset: Dataset | IterableDataset, column: str, key: str, label: str) -> None:
    """Raise UserError when a dataset has no such column."""
    with readable("data", label):
        names = dataset.column_names or list(next(iter(dataset), {}))
    if column not in names:
        raise UserError(f"{key}={column}: {label} has the columns {', '.join(names)}{nearest(column, names)}; name one")


def text_rows(dataset: IterableDataset, column: str, key: str, label: str) -> IterableDataset:
    """Return the dataset with the one column `text` of strings."""
    from datasets import Features, Value

    check_column(dataset, column, key, label)
    only = dataset.select_columns([column])
    named = only if column == "text" else only.rename_column(column, "text")
    return named.cast(Features({"text": Value("string")}))


def texts(rows: IterableDataset, key: str, label: str) -> Iterator[str]:
    """Yield the texts in order, "" for an absent one; UserError when a file turns out to be unreadable."""
    with readable(key, label):
        for row in rows:
            yield row["text"] or ""


@contextmanager
def readable(key: str, label: str) -> Iterator[None]:
    """Turn what goes wrong while rows are read into a UserError."""
    import pyarrow

    try:
        yield
    except (*FAILURES, pyarrow.ArrowException) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{key}: {label} cannot be read ({reason}); repair or replace it, or correct data.format"
        ) from error
