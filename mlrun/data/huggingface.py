"""Hugging Face `datasets` behind one door: nothing runs remote code, and a failure is one line."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from omegaconf import MISSING

from mlrun import files
from mlrun.data import cache, columns
from mlrun.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

OFFLINE = "go online, or run once online so that it is in the Hugging Face cache, or use local files (data=parquet)"
WRONG = "correct its path, name, split or revision"
FULL = "free some space, or move the Hugging Face cache (HF_HOME)"
LOCKS = "move the Hugging Face cache (HF_HOME), and temporary files (TMPDIR), to a file system that has locks"
FAILURES = (OSError, ValueError, RuntimeError)  # what `datasets` raises for whatever goes wrong
# Packages below `datasets` whose own errors are those of a connection, whichever of them a version stands on.
NETWORK = frozenset({"aiohttp", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"})
_ROWS = 100  # of a file, read at once
PATIENCE = 30.0  # seconds that the hub has to answer a question

Answer = TypeVar("Answer")


def load(key: str, label: str, path: str, **settings: Any) -> Dataset | IterableDataset:
    """Return one split by `datasets.load_dataset`; UserError when it is unreachable or not there."""
    import datasets

    _refuse_old_locks(key, label)
    return _asked(key, label, lambda: datasets.load_dataset(path, **settings))


def _refuse_old_locks(key: str, label: str) -> None:
    """Raise UserError for locks that `datasets` would wait for without end.

    A lock of `flock` is an empty file that stays when it is free. Where a file system has no `flock` at all, filelock
    takes a file in its place for a lock that is held; its own have a content.
    """
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE)
    if not folder.is_dir() or not _without_flock(folder):
        return
    if old := sorted(str(path) for path in folder.rglob("*.lock") if path.stat().st_size == 0):
        told = f"{old[0]} was left where locks worked, and its file system has none now"
        others = f" (and {len(old) - 1} more)" if len(old) > 1 else ""
        raise UserError(f"{key}: {label} cannot be loaded ({told}{others}); remove these empty files, or {LOCKS}")


def _without_flock(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.ENOSYS
    finally:
        os.close(descriptor)
    return False


def stream_files(key: str, label: str, kind: str, names: list[str], **settings: Any) -> IterableDataset:
    """Return local files as a stream. Nothing of one is kept, so where `datasets` wants its lock is a temporary folder:
    the Hugging Face cache may be read-only, or on a file system without locks."""
    import datasets

    def question() -> IterableDataset:
        with tempfile.TemporaryDirectory() as unused:
            return datasets.load_dataset(
                kind, data_files=names, split="train", streaming=True, cache_dir=unused, **settings
            )

    return _asked(key, label, question)


def commit(key: str, label: str, path: str, revision: str | None) -> str:
    """Return the commit that a revision of a data set on the hub stands for; UserError like `load`."""
    from huggingface_hub import HfApi

    info = _asked(key, label, lambda: HfApi().dataset_info(path, revision=revision, timeout=PATIENCE))
    assert info.sha is not None
    return info.sha


def _asked(key: str, label: str, question: Callable[[], Answer]) -> Answer:
    """Return the answer of the hub, or raise UserError with what to do."""
    try:
        return question()
    except Exception as error:  # of `datasets`, of `huggingface_hub`, and of whatever they talk through
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{key}: {label} cannot be loaded ({reason}); {_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    if files.full_or_forbidden(error):
        return FULL
    if isinstance(error, OSError) and error.errno in files.NO_LOCKS:
        return LOCKS
    return OFFLINE if unreachable(error) else WRONG


def unreachable(error: BaseException | None) -> bool:
    """Say whether the hub could not be reached, as against reached in vain."""
    if error is None:
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status == 429 or status >= 500  # too many questions, or its own trouble
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    lost = isinstance(error, ConnectionError | TimeoutError) or not NETWORK.isdisjoint(packages)
    return lost or "offline" in str(error).lower()


def check_column(dataset: Dataset | IterableDataset, column: str, key: str, label: str) -> None:
    """Raise UserError when a dataset has no such column."""
    names = _names(dataset, label)
    if column not in names:
        raise columns.missing(column, names, key, label)


def _names(dataset: Dataset | IterableDataset, label: str) -> list[str]:
    with readable("data", label):
        return dataset.column_names or list(next(iter(dataset), {}))


def text_rows(dataset: IterableDataset, column: str, key: str, label: str) -> IterableDataset:
    """Return the dataset with the one column `text` of strings; `doc.text` is a field of the column doc."""
    from datasets import Features, Value

    top = _top(dataset, column, key, label)
    only = dataset.select_columns([top])
    known = None if dataset.features is None else dataset.features[top]
    if isinstance(known, Value) and known.dtype in {"string", "large_string"} and top == column:
        named = only if column == "text" else only.rename_column(column, "text")
        return named.cast(Features({"text": Value("string")}))

    def chosen(row: dict[str, Any]) -> dict[str, str]:
        return {"text": _text(row, top, column, key, label)}

    return only.map(chosen, remove_columns=[top], features=Features({"text": Value("string")}))


def _top(dataset: IterableDataset, column: str, key: str, label: str) -> str:
    """Return the column that holds the text, or the field that it is; UserError where there is none."""
    names = _names(dataset, label)
    top = column if column in names else column.partition(".")[0]
    if top not in names:
        raise columns.missing(column, names, key, label)
    return top


def _text(row: dict[str, Any], top: str, column: str, key: str, label: str) -> str:
    value = columns.find(row, column)
    if value is columns.ABSENT:
        raise columns.missing(column, [f"{top}.{name}" for name in row[top]], key, label)
    return columns.text(value, column, key, label)


def file_texts(dataset: IterableDataset, column: str, key: str, files_key: str, label: str) -> Iterator[str]:
    """Yield what `texts` yields of `text_rows`, reading some rows at a time, which takes a third of the time."""
    import pyarrow

    top = _top(dataset, column, key, label)
    with readable(files_key, label):
        for table in dataset.select_columns([top]).with_format("arrow").iter(_ROWS):
            found = table.column(top)
            if top == column and (pyarrow.types.is_string(found.type) or pyarrow.types.is_large_string(found.type)):
                yield from (text or "" for text in found.to_pylist())
            else:
                yield from (_text(row, top, column, key, label) for row in table.to_pylist())


def texts(rows: IterableDataset, key: str, label: str) -> Iterator[str]:
    """Yield the texts in order, "" for an absent one; UserError when a file turns out to be unreadable."""
    with readable(key, label):
        for row in rows:
            yield row["text"] or ""


@contextmanager
def readable(key: str, label: str, where: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn what goes wrong while rows are read into a UserError, which says where."""
    import pyarrow

    try:
        yield
    except Exception as error:
        if not isinstance(error, (*FAILURES, pyarrow.ArrowException)) and not unreachable(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = OFFLINE if unreachable(error) else "repair or replace it, or correct data.format or data.encoding"
        place = "" if where is None else f"{where()}: "
        raise UserError(f"{key}: {label} cannot be read ({place}{reason}); {remedy}") from error


@dataclass(frozen=True)
class HubSource:
    """One split of one data set; `text` is the column, `revision` a branch or commit."""

    path: str = MISSING
    name: str | None = None
    split: str = "train"
    text: str = "text"
    revision: str | None = None

    key: ClassVar[str] = "data.sources"  # what names it

    @property
    def label(self) -> str:
        """Return how messages call it."""
        return " ".join(part for part in (self.path, self.name, self.split) if part is not None)

    @property
    def place(self) -> str:
        """The data set as the hub calls it, or the folder with the home that its `~` stands for."""
        return str(files.expanded(self.path)) if self.path.startswith("~") else self.path

    def load(self, streaming: bool) -> Dataset | IterableDataset:
        """Return the split, downloaded into the Hugging Face cache or streamed."""
        self._check_name()
        settings = {"name": self.name, "split": self.split, "revision": self.revision, "streaming": streaming}
        return load(self.key, self.label, self.place, **settings)

    def _check_name(self) -> None:
        """Raise UserError for a local folder in whose place `datasets` would read another: data[1] is data1 to it."""
        folder = Path(self.place).resolve()
        if folder.exists() and re.search(r"[*?\[]", str(folder)):
            told = (
                f"{folder} has one of * ? [ in its name, which stands for other folders; rename it, or use data.files"
            )
            raise UserError(f"{self.key}: {told}")

    def json_files(self, streaming: bool) -> list[str] | None:
        """Return the split's files if it is plain JSON, which we read ourselves; None for all else.

        Those of a data set on the hub are downloaded into the Hugging Face cache and, where the hub cannot be reached,
        found there; streamed, they are addresses (`hf://...`).
        """
        try:
            found = self._json_files()
        except UserError as error:
            kept = None if streaming or not unreachable(error.__cause__) else self._kept()
            if kept is None:
                raise
            return kept
        if found is None or streaming or Path(self.place).exists():
            return found
        return _asked(self.key, self.label, lambda: self._download(found))

    def _download(self, addresses: list[str]) -> list[str]:
        here = [_downloaded(address) for address in addresses]
        self._note.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(self._note, {"files": here})
        return here

    def _json_files(self) -> list[str] | None:
        import datasets
        from datasets.packaged_modules.json.json import Json

        self._check_name()
        _refuse_old_locks(self.key, self.label)
        asked = {"name": self.name, "revision": self.revision}
        builder = _asked(self.key, self.label, lambda: datasets.load_dataset_builder(self.place, **asked))
        if not isinstance(builder, Json) or builder.config.field is not None:
            return None
        found = (builder.config.data_files or {}).get(self.split)
        return None if found is None else [str(file) for file in found]

    @property
    def _note(self) -> Path:
        """Return where it is noted which files are all of a split: after a download that broke off some are there."""
        import datasets

        return Path(datasets.config.HF_DATASETS_CACHE) / "mlrun" / f"{cache.digest(asdict(self))}.json"

    def _kept(self) -> list[str] | None:
        found = list(files.read_json(self._note)["files"]) if self._note.exists() else []
        return found if found and all(map(os.path.exists, found)) else None

    def facts(
        self, loaded: Dataset | IterableDataset | None, streaming: bool, json_files: list[str] | None = None
    ) -> dict[str, Any]:
        """Return what names the content: hashes of local and of JSON files, the cached files, or the hub's commit."""
        if Path(self.place).exists():
            found = sorted(file for file in Path(self.place).rglob("*") if file.is_file())
            own = {key: value for key, value in asdict(self).items() if key != "path"}
            return {**own, "files": cache.file_facts(found)}
        if streaming:
            return {**asdict(self), "commit": commit(self.key, self.label, self.place, self.revision)}
        if json_files is not None:
            return {**asdict(self), "files": cache.file_facts(json_files)}
        assert loaded is not None, "what is not JSON was opened by `datasets`"
        # .../<name>/<version>/<commit of the hub>/<file>.arrow
        names = ["/".join(Path(file["filename"]).parts[-4:]) for file in loaded.cache_files]
        return {**asdict(self), "cached": sorted(names), "rows": len(loaded)}


def _downloaded(address: str) -> str:
    """Return where a file of the hub (`hf://...`) lies in the Hugging Face cache."""
    from huggingface_hub import HfFileSystem, hf_hub_download

    at: Any = HfFileSystem().resolve_path(address)  # of a repository: data sets lie in nothing else
    return hf_hub_download(at.repo_id, at.path_in_repo, repo_type=at.repo_type, revision=at.revision)
