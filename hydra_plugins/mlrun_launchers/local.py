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

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.mlrun_launchers.jobs import Job, resolved
from mlrun.cli import capacity, said
from mlrun.cli.command import override
from mlrun.cli.jobs import forget_failure, note_failure
from mlrun.cli.messages import IN_USE, print_error

# What says how to sweep; a single run has no use for it.
OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.", "hydra.mode")
PAUSE = 0.2
# What ends a sweep: what stops a run does.
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2, signal.SIGINT)


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
        with _asked() as came:
            try:
                while (waiting or running) and not came:
                    while waiting and free and not came:
                        running.append((Started(waiting.pop(0), free[-1]), free.pop()))
                    time.sleep(PAUSE)
                    for started, share in [] if came else [r for r in running if r[0].process.poll() is not None]:
                        running.remove((started, share))
                        free.append(share)
                        ended += 1
                        print(f"{ended}/{len(runs)} {started.run.folder.name}: {started.outcome()}", flush=True)
            finally:
                _end([started.process for started, _ in running], came)
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(128 + came[0])


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
def _asked() -> Iterator[list[int]]:
    """Give a list of the signals that came so far and ask to end; what was ignored stays ignored (`nohup`).

    None of them breaks off what is done: a run that was just started would be lost to us.
    """
    came: list[int] = []
    before = {number: handler for number in ENDING if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(processes: list[subprocess.Popen[bytes]], came: list[int]) -> None:
    """Let runs save and stop, and wait for them; a Ctrl-C that is not the first signal ends them at once."""
    for process in processes:
        process.terminate()
    if processes:
        print_error(f"mlrun: {len(processes)} runs save, then stop; Ctrl-C again ends them at once")
    while any(process.poll() is None for process in processes):
        time.sleep(PAUSE)
        if signal.SIGINT in came[1:]:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # each leads a session: what it started ends too


ConfigStore.instance().store(group="hydra/launcher", name="local_schema", node=LocalConf, provider="mlrun")
