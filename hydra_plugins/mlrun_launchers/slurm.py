"""hydra-submitit-launcher for SLURM, but a job that was killed takes nothing from the others.

The original raises at the first job that has no result: the rest is not waited for and no report is made. Here every
job is waited for, and the folder of one that was killed gets the note of a failed run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.mlrun_launchers.jobs import resolved

try:
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # Hydra reads every plugin at each start; without the extra there is no such launcher
    pass
else:
    # Arguments of the executor itself; the others describe the job.
    EXECUTOR = ("submitit_folder", "max_num_timeout")

    class PatientSlurmLauncher(SlurmLauncher):
        """Submits all points of a sweep as one array and waits for every one of them."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Return one result per job; what a job has to say stands in its run folder."""
            numbered = list(enumerate(job_overrides, initial_job_idx))
            state = Singleton.get_state()
            calls = [(list(overrides), "hydra.sweep.dir", n, f"job_id_for_{n}", state) for n, overrides in numbered]
            jobs = self._executor().map_array(self, *zip(*calls, strict=True))
            ids = ", ".join(sorted({str(job.job_id).partition("_")[0] for job in jobs}))
            logs = str(self.params["submitit_folder"]).removesuffix("/%j")
            print(f"mlrun: {len(jobs)} runs are SLURM job {ids}; what they print is in {logs}", flush=True)
            known = (self.hydra_context, self.config)
            folders = [resolved(*known, given, number, self.task_function).folder for number, given in numbered]
            return [self._waited(job, folder) for job, folder in zip(jobs, folders, strict=True)]

        def _executor(self) -> Any:
            import submitit

            executor = submitit.AutoExecutor(
                folder=self.params["submitit_folder"],
                cluster="slurm",
                slurm_max_num_timeout=self.params["max_num_timeout"],
            )
            common = BaseQueueConf.__dataclass_fields__
            given = {key: value for key, value in self.params.items() if key not in EXECUTOR}
            executor.update_parameters(**{k if k in common else f"slurm_{k}": v for k, v in given.items()})
            return executor

        def _waited(self, job: Any, folder: Path) -> JobReturn:
            """Wait for a job; one that died without a word is noted in its folder."""
            from submitit.core.utils import FailedJobError, UncompletedJobError

            try:
                job.results()
            except (FailedJobError, UncompletedJobError) as error:
                folder.mkdir(parents=True, exist_ok=True)
                note = folder / "error.txt"
                if not note.exists():
                    note.write_text(f"mlrun: SLURM job {job.job_id} ended as {job.state}: {_last(str(error))}\n")
            return JobReturn(status=JobStatus.COMPLETED)

    # The keys are those of hydra-submitit-launcher.
    CONFIG = replace(SlurmQueueConf(), _target_="hydra_plugins.mlrun_launchers.slurm.PatientSlurmLauncher")
    ConfigStore.instance().store(group="hydra/launcher", name="slurm_schema", node=CONFIG, provider="mlrun")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
