"""hydra-submitit-launcher for SLURM, but a job that was killed takes nothing from the others.

The original raises at the first job that has no result: the rest is not waited for and no report is made. Here every
job is waited for, and the folder of one that was killed gets the note of a failed run. Jobs that an earlier command
left in the queue are found again and waited for.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn

from hydra_plugins.mlrun_launchers.jobs import resolved
from mlrun import files
from mlrun.cli.messages import Failed

MARK = "mlrun-"  # how a word of ours in a job's comment begins

try:
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # Hydra reads every plugin at each start; without the extra there is no such launcher
    pass
else:
    # Which job each run is.
    JOBS = "jobs.json"
    REMEDY = "end this sweep's jobs that are still in the queue (squeue --me, scancel), and remove the file"
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
            calls = {
                folder: self._call(number, given) for folder, (number, given) in zip(folders, numbered, strict=True)
            }
            jobs = self._still_queued(calls)
            if jobs:
                print(
                    f"mlrun: {len(jobs)} of {len(folders)} runs are in the queue since an earlier command", flush=True
                )
            new = {folder: call for folder, call in calls.items() if folder not in jobs}
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

        def _call(self, number: int, given: Sequence[str]) -> tuple[Any, ...]:
            """Return what this object is called with in a job."""
            return list(given), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state()

        def _submitted(self, new: Mapping[Path, tuple[Any, ...]]) -> dict[Path, Any]:
            """Submit runs as an array, and write down which job each is: before by a mark of ours, after by its number.

            A command that is killed in between, or gets no answer from sbatch, leaves jobs that their mark names.
            """
            mark = f"{MARK}{uuid.uuid4().hex}"
            self._record(new, [f"{mark}_{index}" for index in range(len(new))] if len(new) > 1 else [mark])
            submitted = self._executor(mark).map_array(self, *zip(*new.values(), strict=True))
            self._record(new, [job.job_id for job in submitted])
            ids = ", ".join(sorted({str(job.job_id).partition("_")[0] for job in submitted}))
            print(f"mlrun: {len(new)} runs are SLURM job {ids}; what they print is in {self._printed}", flush=True)
            return dict(zip(new, submitted, strict=True))

        def _record(self, folders: Iterable[Path], names: Sequence[str]) -> None:
            """Write down which job each run is."""
            tasks = self.params["nodes"] * max(1, self.params["tasks_per_node"])
            record = {folder.name: [name, tasks] for folder, name in zip(folders, names, strict=True)}
            files.write_json(self._printed / JOBS, self._recorded() | record)

        def _recorded(self) -> dict[str, list[Any]]:
            """Return by run the last job that was submitted for it, and its number of processes."""
            record = self._printed / JOBS
            return files.read_json(record, REMEDY) if record.exists() else {}

        def _still_queued(self, calls: Mapping[Path, tuple[Any, ...]]) -> dict[Path, Any]:
            """Return the jobs of an earlier command that wait, run or go back into the queue."""
            from submitit import SlurmJob

            recorded = self._recorded()
            queue = _queue() if recorded else {}
            ours = {folder: recorded[folder.name] for folder in calls if folder.name in recorded}
            found = {
                folder: SlurmJob(self._printed, queue[name], list(range(tasks)))
                for folder, (name, tasks) in ours.items()
                if name in queue
            }
            for folder, job in found.items():
                self._hand_over(job, calls[folder])
            if found:
                self._record(found, [job.job_id for job in found.values()])
            return found

        def _hand_over(self, job: Any, call: tuple[Any, ...]) -> None:
            """Give a job what it is to do, where the command that submitted it was killed before it could."""
            from submitit.helpers import DelayedSubmission

            wanted = job.paths.submitted_pickle
            if wanted.exists():
                return
            delayed = DelayedSubmission(self, *call)
            delayed.set_timeout(self.params["timeout_min"], self.params["max_num_timeout"])
            with files.whole_file(wanted) as aside:  # the job looks for the name each second
                delayed.dump(aside)

        def _executor(self, mark: str) -> Any:
            """Return what submits jobs that carry a mark at the end of their comment."""
            import submitit

            executor = submitit.AutoExecutor(
                folder=self._printed, cluster="slurm", slurm_max_num_timeout=self.params["max_num_timeout"]
            )
            common = BaseQueueConf.__dataclass_fields__
            given = {key: value for key, value in self.params.items() if key not in EXECUTOR}
            flags = dict(given["additional_parameters"] or {})
            comment = flags.pop("comment", given["comment"])
            given |= {"additional_parameters": flags, "comment": f"{comment} {mark}" if comment else mark}
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


def _queue() -> dict[str, str]:
    """Return the number of every job of this user that SLURM has not ended, each task of an array by itself.

    It is found under that number and, of a job that carries a mark of ours, under mark and place in the array.
    """
    asked = ["squeue", "--noheader", "--array", "--me", "--format=%i %k"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        raise Failed(f"{' '.join(asked)}: {_last(told)}: without it, runs under way would be started twice") from None
    found = {}
    for number, *comment in filter(None, map(str.split, lines)):
        found[number] = number
        if comment and comment[-1].startswith(MARK):
            found[comment[-1] + number[len(number.partition("_")[0]) :]] = number
    return found


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
