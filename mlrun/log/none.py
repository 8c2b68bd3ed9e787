"""The logger that listens to nothing; log.jsonl and the console are always there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlrun.log.log import NoSink, Record


@dataclass(frozen=True)
class NoLogger:
    """`_target_` of conf/logger/none.yaml."""

    def problems(self) -> list[str]:
        """There is nothing to set wrong."""
        return []

    def start(self, run_folder: Path, config: Record, plan: Record, resumed: bool) -> NoSink:
        """Return a sink that drops everything."""
        return NoSink()
