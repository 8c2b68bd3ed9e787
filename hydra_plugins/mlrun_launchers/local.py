"""Runs of a sweep side by side on one machine: each is an ordinary `mlrun` command, a process of its own.

A run that fails, or is killed, takes nothing from the others; what it prints goes to a file below the sweep's folder.
"""

# No postponed annotations: Hydra reads a plugin before it is a module, and dataclasses look theirs up there.
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.mlrun_launchers.jobs import Job, resolved
from mlrun.cli import capacity, said
from mlrun.cli.command import override
from mlrun.cli.jobs import forget_failure, note_failure
from mlrun.cli.messages import IN_USE

# What says how to sweep; a single run has no use for it.
OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.", "hydra.mode")
PAUSE = 0.2


@dataclass
class LocalConf:
    """The keys that conf/hydra/launcher/local.yaml explains."""

    _target_: str = "hydra_plugins.mlrun_launchers.local.LocalLauncher"
    runs_at_a_time: int | None = None
    processes_per_run: int = 1


@dataclass(frozen=True)
class Run:
    """One run of the sweep: its command, its folder, and the file for what it prints."""

    command: list[str]
    folder: Path
    printed: Path


class LocalLauncher(Launcher):
    """Starts the next run of a sweep whenever one has ended."""

    def __init__(self, runs_at_a_time: int | None, processes_per_run: int) -> None:
        self.runs_at_a_time, self.processes_per_run = runs_at_a_time, processes_per_run

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what the runs are composed from."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Return one result per run, when all have ended; what a run has to say stands in its folder."""
        numbered = enumerate(job_overrides, initial_job_idx)
        known = (self.hydra_context, self.config)
        jobs = [(resolved(*known, given, number, self.task_function), given) for number, given in numbered]
        device = "cuda" if any(job.device == "cuda" for job, _ in jobs) else "cpu"
        free = capacity.shares(self.runs_at_a_time, self.processes_per_run, device)
        runs = [self._run(job, list(given)) for job, given in jobs]
        print(f"mlrun: {len(runs)} runs, {min(len(free), len(runs))} at a time; what they print is in "
              f"{runs[0].printed.parent}", flush=True)  # fmt: skip
        self._work_off(runs, free)
        return [job.result() for job, _ in jobs]

    def _run(self, job: Job, overrides: list[str]) -> Run:
        how = ["-m", "mlrun"]
        if self.processes_per_run > 1:
            how = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes_per_run}", *how]
        kept = [text for text in self.config.hydra.overrides.hydra if not text.startswith(OF_THE_SWEEP)]
        own = [text for text in overrides if not text.startswith(OF_THE_SWEEP)]
        command = [sys.executable, *how, *kept, *own, override("run", job.folder)]
        return Run(command, job.folder, job.sweep / ".console" / f"{job.name}.txt")

    def _work_off(self, runs: list[Run], free: list[capacity.Share]) -> None:
        waiting, running, ended = list(runs), list[tuple[Started, capacity.Share]](), 0
        with _stopped_with_us(running):
            while waiting or running:
                while waiting and free:
                    running.append((Started(waiting.pop(0), free[-1]), free.pop()))
                time.sleep(PAUSE)
                for started, share in [pair for pair in running if pair[0].process.poll() is not None]:
                    running.remove((started, share))
                    free.append(share)
                    ended += 1
                    print(f"{ended}/{len(runs)} {started.run.folder.name}: {started.outcome()}", flush=True)


class Started:
    """A run under way."""

    def __init__(self, run: Run, share: capacity.Share) -> None:
        run.printed.parent.mkdir(parents=True, exist_ok=True)
        self.run = run
        with open(run.printed, "ab") as file:
            self._from = file.tell()
            # A session of its own: an interrupt of the terminal reaches us alone, and we ask the run to save.
            self.process = subprocess.Popen(
                run.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env={**os.environ, **share.environment, said.JUDGED: "1"}, start_new_session=True,
            )  # fmt: skip

    def outcome(self) -> str:
        """Return the last line that the run printed; of one that failed, also note the reason in its folder."""
        with open(self.run.printed, "rb") as file:
            file.seek(self._from)
            lines = file.read().decode(errors="replace").splitlines()
        if self.process.returncode == 0:
            forget_failure(self.run.folder)
            return lines[-1] if lines else "done"
        told = [line for line in lines if line.startswith("mlrun: ")] or lines[-40:]
        if self.process.returncode == IN_USE:
            return told[-1]
        if not told:
            told = [f"mlrun: it ended with {_ending(self.process.returncode)} and printed nothing"]
        note_failure(self.run.folder, "\n".join(told) + "\n")
        return told[-1]


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


@contextlib.contextmanager
def _stopped_with_us(running: list[tuple[Started, Any]]) -> Iterator[None]:
    """Ask what still runs to save and stop, and wait for it, whatever ends this process before its time."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for started, _ in running:
            started.process.terminate()
        for started, _ in running:
            started.process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


ConfigStore.instance().store(group="hydra/launcher", name="local_schema", node=LocalConf, provider="mlrun")
