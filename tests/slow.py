"""The embedded speeches at a pace: $PAUSE seconds a batch. What a job that runs into its time limit trains on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlrun.data.text.sotu import Sotu


@dataclass(frozen=True, kw_only=True)
class Slow(Sotu):
    """The same samples, later."""

    def prepare(self, settings: Any) -> Any:
        source = super().prepare(settings)
        batches, pause = source.batches, float(os.environ["PAUSE"])

        def later(*where: Any) -> Iterator[Any]:
            for batch in batches(*where):
                time.sleep(pause)
                yield batch

        source.batches = later
        return source
