"""TensorBoard as a listener: event files in the run folder, for `tensorboard --logdir`."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.errors import UserError, mistake
from mlrun.log import jsonl
from mlrun.log.sink import POSITION, Record, Sink, series

FOLDER = "tensorboard"
AXES = ("step", "tokens")  # TensorBoard's axis is a whole number of 64 bits, which FLOPs outgrow


@dataclass(frozen=True)
class TensorBoardLogger:
    """`_target_` of conf/logger/tensorboard.yaml; the keys are described there."""

    x: str = "step"

    def problems(self) -> list[str]:
        """Return one line per wrong setting, and one if the library is not there."""
        found = []
        if importlib.util.find_spec("tensorboard") is None:
            found.append(mistake("logger", "tensorboard", "none, wandb", "or pip install 'mlrun[tensorboard]'"))
        if self.x not in AXES:
            found.append(mistake("logger.tensorboard.x", self.x, ", ".join(AXES), "choose one of these"))
        return found

    def start(self, run_folder: Path, config: Record, plan: Record, keep: int) -> Sink:
        """Write the event files anew, from the records so far.

        Raises:
            UserError: a wrong setting, no library, or files that cannot be written.
        """
        if self.problems():
            raise UserError(self.problems())
        from torch.utils.tensorboard import SummaryWriter

        folder = run_folder / FOLDER
        try:
            shutil.rmtree(folder, ignore_errors=True)
            writer = SummaryWriter(str(folder))
        except OSError as error:
            raise UserError(mistake("logger", "tensorboard", "a folder to write", f"mend it ({error})")) from None
        sink = TensorBoardSink(writer, self.x)
        sink.show("config", config)
        sink.show("plan", plan)
        for record in jsonl.records(run_folder / files.LOG, keep) if keep > 0 else ():
            sink.write(record)
        return sink


class TensorBoardSink(Sink):
    """Writes each number of a record as a point of its series."""

    name = "TensorBoard"

    def __init__(self, writer: Any, x: str) -> None:
        self._writer, self._x = writer, x

    def show(self, name: str, values: Record) -> None:
        """Show nested values as text."""
        text = json.dumps(jsonl.finite(values), indent=2, default=str)
        self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()))

    def write(self, record: Record) -> None:
        """Add the record's points."""
        for name, value in series(record).items():
            for key, number in _numbers(name, value) if name not in POSITION else ():
                self._writer.add_scalar(key, number, record[self._x])

    def replan(self, plan: Record) -> None:
        """Show the plan as it is now."""
        self.show("plan", plan)

    def finish(self, summary: Record) -> None:
        """Show the summary."""
        self.show("summary", summary)

    def close(self, exit_code: int) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield what is a number, with the numbers inside as `name/key`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
