"""hydra-submitit-launcher for SLURM, but a job that was killed takes nothing from the others.

The original raises at the first job that has no result: the rest is not waited for and no report is made. Here every
job is waited for, and the folder of one that was killed gets the note of a failed run. Jobs that an earlier command
left in the queue are found again and waited for.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn

from hydra_plugins.mlrun_launchers.jobs import resolved
from mlrun.cli.messages import Failed

try:
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # Hydra reads every plugin at each start; without the extra there is no such launcher
    pass
else:
    # Which job each run is.
    JOBS = "jobs.json"
    # Arguments of the executor itself; the others describe the job.
    EXECUTOR = ("submitit_folder", "max_num_timeout")

    class PatientSlurmLauncher(SlurmLauncher):
        """Submits all points of a sweep as one array and waits for every one of them."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Return one result per job; what a job has to say stands in its run folder."""
            numbered = list(enumerate(job_overrides, initial_job_idx))
            known = (self.hydra_context, self.config)
            every = [resolved(*known, given, number, self.task_function) for number, given in numbered]
            folders = [job.folder for job in every]
            self._printed.mkdir(parents=True, exist_ok=True)
            jobs = self._still_queued(folders)
            if jobs:
                print(
                    f"mlrun: {len(jobs)} of {len(folders)} runs are in the queue since an earlier command", flush=True
                )
            new = [(folder, call) for folder, call in zip(folders, numbered, strict=True) if folder not in jobs]
            if new:
                jobs |= self._submitted(new)
            for folder in folders:
                self._wait(jobs[folder], folder)
            return [job.result() for job in every]

        @property
        def _printed(self) -> Path:
            """Return the one folder for scripts and output of all jobs.

            A folder for each could be made only once sbatch has told the job's number, and the job may begin before.
            """
            return Path(str(self.params["submitit_folder"]).removesuffix("/%j")).absolute()

        def _submitted(self, new: Sequence[tuple[Path, tuple[int, Sequence[str]]]]) -> dict[Path, Any]:
            """Submit runs as an array, and write down which job each is."""
            state = Singleton.get_state()
            calls = [(list(given), "hydra.sweep.dir", n, f"job_id_for_{n}", state) for _, (n, given) in new]
            jobs = dict(
                zip([f for f, _ in new], self._executor().map_array(self, *zip(*calls, strict=True)), strict=True)
            )
            record = {folder.name: [job.job_id, job.num_tasks] for folder, job in jobs.items()}
            temporary = self._printed / f".{JOBS}"
            temporary.write_text(json.dumps(self._recorded() | record))
            temporary.replace(self._printed / JOBS)
            ids = ", ".join(sorted({str(job.job_id).partition("_")[0] for job in jobs.values()}))
            print(f"mlrun: {len(jobs)} runs are SLURM job {ids}; what they print is in {self._printed}", flush=True)
            return jobs

        def _recorded(self) -> dict[str, list[Any]]:
            """Return by run the last job that was submitted for it, and its number of processes."""
            record = self._printed / JOBS
            found: dict[str, list[Any]] = json.loads(record.read_text()) if record.exists() else {}
            return found

        def _still_queued(self, folders: Sequence[Path]) -> dict[Path, Any]:
            """Return the jobs of an earlier command that wait, run or go back into the queue."""
            from submitit import SlurmJob

            recorded = self._recorded()
            queue = _queue() if recorded else set()
            return {
                folder: SlurmJob(self._printed, recorded[folder.name][0], list(range(recorded[folder.name][1])))
                for folder in folders
                if folder.name in recorded and recorded[folder.name][0] in queue
            }

        def _executor(self) -> Any:
            import submitit

            executor = submitit.AutoExecutor(
                folder=self._printed, cluster="slurm", slurm_max_num_timeout=self.params["max_num_timeout"]
            )
            common = BaseQueueConf.__dataclass_fields__
            given = {key: value for key, value in self.params.items() if key not in EXECUTOR}
            executor.update_parameters(**{k if k in common else f"slurm_{k}": v for k, v in given.items()})
            return executor

        def _wait(self, job: Any, folder: Path) -> None:
            """Wait for a job; one that died without a word is noted in its folder."""
            from submitit.core.utils import FailedJobError, UncompletedJobError

            from mlrun.cli.jobs import note_failure
            from mlrun.files import ERROR

            try:
                job.results()
            except (FailedJobError, UncompletedJobError) as error:
                if not (folder / ERROR).exists():
                    told = f"mlrun: SLURM job {job.job_id} ended as {job.state}: {_last(str(error))}\n"
                    note_failure(folder, told)

    # The keys are those of hydra-submitit-launcher.
    CONFIG = replace(SlurmQueueConf(), _target_="hydra_plugins.mlrun_launchers.slurm.PatientSlurmLauncher")
    ConfigStore.instance().store(group="hydra/launcher", name="slurm_schema", node=CONFIG, provider="mlrun")


def _queue() -> set[str]:
    """Return every job of this user that SLURM has not ended, each task of an array by itself."""
    asked = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    try:
        return set(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split())
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        raise Failed(f"{' '.join(asked)}: {_last(told)}: without it, runs under way would be started twice") from None


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
