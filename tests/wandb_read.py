"""Read an offline W&B run back from disk, with no server.

`run-<id>.wandb` is a LevelDB-style log: a 7-byte header, then 32 KiB blocks of chunks (crc u32, length u16,
type u8: 1 full, 2 first, 3 middle, 4 last) whose payloads are protobuf `Record`s.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


def records(path: Path) -> Iterator[Any]:
    """Yield every Record; a run that is still being written just ends early."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B", path
    position, payload = HEADER, b""
    while True:
        left = BLOCK - position % BLOCK
        if left < HEADER:  # the tail of a block is padding
            position += left
            continue
        if position + HEADER > len(data):
            return
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + HEADER + length > len(data) or kind not in (1, 2, 3, 4):
            return
        chunk = data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        payload = chunk if kind in (1, 2) else payload + chunk
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(payload)


def read_run(folder: Path) -> dict[str, Any]:
    """Return what an offline-run folder holds: id, project, config, history, summary, metrics, exit code, ..."""
    (path,) = folder.glob("*.wandb")
    out: dict[str, Any] = {
        "config": {},
        "history": [],
        "summary": {},
        "metrics": {},
        "hidden": set(),
        "exit_code": None,
    }
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                out |= {
                    "id": run.run_id,
                    "project": run.project,
                    "entity": run.entity,
                    "name": run.display_name,
                    "group": run.run_group,
                    "job_type": run.job_type,
                }
                out["tags"] = list(run.tags)
                out["config"] |= _items(run.config.update)
            case "history":
                out["history"].append(_items(record.history.item))
            case "summary":
                out["summary"] |= _items(record.summary.update)
            case "metric":
                out["hidden"] |= {record.metric.name} if record.metric.options.hidden else set()
                out["metrics"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "exit":
                out["exit_code"] = record.exit.exit_code
    return out


def _items(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
