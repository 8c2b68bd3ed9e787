"""What work costs as it grows: seconds and memory of a step over width, depth, sequence and level; reports; long logs.

Steps are those of the loop, as a run calls it, on one thread; memory is that of tensors, beyond weights and moments.
Reports are over copies of runs that the tests keep, each with a seed of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import median

import torch

from benchmarks import levels, ours
from benchmarks.loop import timed
from benchmarks.ours import Work
from benchmarks.table import Report, Target, table
from mlrun import files
from mlrun.log import jsonl
from mlrun.report import read
from mlrun.train.probe import peak

STEPS, TURNS = 4, 3
SMALL = ("model=gpt_tiny", "batch=4", "data.validation_samples=4")
# By what grows: a word of the table, its sizes, and what is said for one of them.
SIZES = {
    "width": ((64, 128, 256, 512), lambda n: (f"model.embed={n}", f"model.head={n // 32}", f"model.ffn={4 * n}")),
    "depth": ((1, 2, 4, 8, 16), lambda n: (f"model.layer={n}",)),
    "sequence": ((64, 128, 256, 512), lambda n: (f"data.sequence={n}", f"model.position={n}")),
}
LEVELS = (1, 2, 3)
STAGES = ",".join(f"{{{{level: {level}, length: {{0}} steps}}}}" for level in (1, 2, 3, 2, 1))
RUNS, RECORDS = (10, 100, 1000), (1000, 10_000, 100_000)
RECORDED = Path(__file__).parents[1] / "tests" / "report" / "recorded"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "growth.png"
# The longest that a report over the largest number of runs may take, and a restart the longest log.
REPORT, RESTART = 20.0, 2.0
# The peak of a process by `getrusage` is that of its parent where that had more.
CODE = """
import pathlib, sys, time
from mlrun.report.build import build
from mlrun.report.read import find
build(find([pathlib.Path(sys.argv[1])]), pathlib.Path(sys.argv[2]))
status = pathlib.Path("/proc/self/status")
lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
print(time.process_time(), int(lines["VmHWM"].split()[0]) / 1024 if "VmHWM" in lines else "nan")
"""


@dataclass(frozen=True)
class Point:
    """One size of what grows: milliseconds and GFLOPs of a step, MiB that it takes."""

    grows: str
    size: int
    milliseconds: float
    gflops: float
    mib: float

    @property
    def row(self) -> list[str]:
        """Return the cells of the table."""
        rate = self.gflops / self.milliseconds * 1000
        numbers = f"{1000 / self.milliseconds:.1f}", f"{self.gflops:.2f}", f"{rate:.1f}", f"{self.mib:.0f}"
        return [self.grows, str(self.size), *numbers]


def step(given: Work, level: int = 1) -> tuple[float, float, float]:
    """Return milliseconds of the processor, GFLOPs and MiB of a step at a level."""
    steps, taken = given.stage(level).steps, []
    with tempfile.TemporaryDirectory() as scratch:
        names = (Path(scratch) / str(number) for number in count())
        one = ours.trainee(given, level)
        for _ in range(TURNS + 1):
            taken.append(timed(lambda to: ours.train(given, one, to, level), next(names)).processor / steps)
        with peak(torch.device("cpu")) as found:
            ours.train(given, one, next(names), level)
    flops = given.plan.level(level).flops.total * given.config.settings.batch
    return 1000 * median(taken[1:]), flops / 1e9, found.bytes / 2**20


def points() -> list[Point]:
    """Measure a step as the model grows, and at each level of a cycle."""
    found = []
    for grows, (sizes, said) in SIZES.items():
        for size in sizes:
            given = levels.alone([*SMALL, *said(size), "cycle=scratch", f"budget={STEPS} steps"])
            found.append(Point(grows, size, *step(given)))
    cycle = f"cycle.stages=[{STAGES.format(STEPS)}]"
    given = levels.alone([*SMALL, "cycle=3level", cycle, f"budget={10 * STEPS} steps"])
    return found + [Point("level", level, *step(given, level)) for level in LEVELS]


def copies(number: int, folder: Path) -> None:
    """Write so many runs: each recorded one again and again, with other seeds."""
    kinds = sorted(path for path in RECORDED.iterdir() if path.is_dir())
    for one in range(number):
        kind, to = kinds[one % len(kinds)], folder / f"{one}"
        shutil.copytree(kind, to)
        text = (kind / files.CONFIG).read_text()
        (to / files.CONFIG).write_text(text.replace("\nseed: 0\n", f"\nseed: {one // len(kinds)}\n"))


def reported(number: int) -> tuple[float, float]:
    """Return seconds of the processor and the most MiB of a process that writes a report over so many runs."""
    with tempfile.TemporaryDirectory() as scratch:
        copies(number, Path(scratch) / "runs")
        command = [sys.executable, "-c", CODE, f"{scratch}/runs", f"{scratch}/report"]
        seconds, mib = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    return seconds, mib


def logged(number: int) -> tuple[float, float, float]:
    """Return seconds to write a log of so many training records, to check it for a restart, and to read it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        shutil.copytree(RECORDED / "2level", folder)
        lines = [json.loads(line) for line in (folder / files.LOG).read_text().splitlines()]
        line = next(record for record in lines if record["kind"] == "train")
        took = [time.process_time()]
        log = jsonl.Jsonl(folder / files.LOG, 0)
        for record in lines[:1]:
            log.write(record)
        for _ in range(number):
            log.write(line)
        for record in lines[1:]:
            log.write(record)
        log.close()
        took.append(time.process_time())
        jsonl.check(folder / files.LOG, (folder / files.LOG).stat().st_size)
        took.append(time.process_time())
        read.read(folder)
        took.append(time.process_time())
    written, checked, known = (after - before for before, after in zip(took, islice(took, 1, None), strict=False))
    return written, checked, known


def draw(sizes: Sequence[Point], reports: Sequence[tuple[float, float]], logs: Sequence[Sequence[float]]) -> None:
    """Draw all of it as one picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    names = [*SIZES, "level"]
    for axis, name in zip(axes.flat, names, strict=False):
        own = [point for point in sizes if point.grows == name]
        first = own[0]
        x = [point.size for point in own]
        axis.plot(x, [point.milliseconds / first.milliseconds for point in own], "o-", label="processor time")
        axis.plot(x, [point.gflops / first.gflops for point in own], "--", color="gray", label="FLOPs")
        axis.plot(x, [point.mib / first.mib for point in own], "s:", label="memory")
        axis.set(xlabel=name, ylabel=f"of a step, over {name} {first.size}", yscale="log", xticks=x, xticklabels=x)
        if name != "level":
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, x, minor=False)
        axis.legend()
    for axis, x, y, words in (
        (axes.flat[4], RUNS, [seconds for seconds, _ in reports], "runs in a report"),
        (axes.flat[5], RECORDS, [checked for _, checked, _ in logs], "records of a log that a restart checks"),
    ):
        axis.plot(x, y, "o-")
        axis.set(xlabel=words, ylabel="processor seconds", xscale="log", yscale="log")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=80)
    plt.close(figure)


def main() -> Report:
    """Return the tables, and draw the figure."""
    sizes = points()
    reports, logs = [reported(number) for number in RUNS], [logged(number) for number in RECORDS]
    draw(sizes, reports, logs)
    head = ["grows", "size", "steps a second", "GFLOPs a step", "GFLOPs a second", "MiB of a step"]
    rows = [[str(n), f"{seconds:.1f}", f"{mib:.0f}"] for n, (seconds, mib) in zip(RUNS, reports, strict=True)]
    lines = [[f"{n:,}", *(f"{part:.2f}" for part in parts)] for n, parts in zip(RECORDS, logs, strict=True)]
    text = [
        table(head, [point.row for point in sizes]),
        table(["runs in a report", "processor seconds", "most MiB of the process"], rows),
        table(["records of a log", "written, s", "checked by a restart, s", "read by a report, s"], lines),
        "GPT of 128 x 4 with a vocabulary of 2048, batch 4 x 128, but for what grows; one thread, processor seconds.",
    ]
    targets = (
        Target(f"growth: a report over {RUNS[-1]} runs", REPORT, reports[-1][0], unit=" s"),
        Target(f"growth: a restart checks {RECORDS[-1]:,} records", RESTART, logs[-1][1], unit=" s"),
    )
    return Report("\n\n".join(text), targets)
