"""log.jsonl: one JSON object a line, the only source of every report."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlrun.errors import UserError, mistake


def finite(value: Any) -> Any:
    """Return the value with every NaN and infinity replaced by None: unknown is null, never 0."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class Jsonl:
    """Appends records to a file.

    Every line is handed to the operating system at once (a running log can be read, and a killed process
    loses nothing); `offset` and `close` also force it to the disk (a power cut loses nothing that a
    checkpoint relies on).
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Open `path`, cut to its first `keep` bytes, so that a resumed run writes no record twice.

        Raises:
            UserError: the file lacks some of the bytes to keep, or they are not whole records.
        """
        check(path, keep)
        self._file = open(path, "r+b" if keep else "wb", buffering=0)  # noqa: SIM115
        self._file.truncate(keep)
        self._file.seek(keep)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record as one line."""
        line = json.dumps(finite(record), allow_nan=False, separators=(", ", ": ")).encode() + b"\n"
        written = 0
        while written < len(line):  # an unbuffered write may be partial
            written += self._file.write(line[written:])

    def offset(self) -> int:
        """Force the file to disk and return its length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Force the file to disk and let go of it; closing twice is fine."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


def records(path: Path, keep: int) -> Iterator[dict[str, Any]]:
    """Yield the records in the first `keep` bytes of a log."""
    with open(path, "rb") as lines:
        while lines.tell() < keep:
            yield json.loads(lines.readline())


def check(path: Path, keep: int) -> None:
    """Raise UserError unless the first `keep` bytes are whole records."""
    remedy, read = "restore the log, or start a new folder", 0
    if keep == 0:
        return
    with open(path, "rb") if path.exists() else io.BytesIO() as lines:
        for number, line in enumerate(lines, 1):
            if read >= keep:
                break
            read += len(line)
            if read <= keep and not _is_record(line):
                raise UserError(f"{path}: line {number} is no record; {remedy}")
    if read != keep:
        size = path.stat().st_size if path.exists() else 0
        allowed = f"at least the {keep} bytes that the checkpoint recorded, ending with a whole line"
        raise UserError(mistake(str(path), f"{size} bytes", allowed, remedy))


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return line.endswith(b"\n") and isinstance(record, dict) and "kind" in record
