"""What a launcher knows of a job of a sweep before it starts."""

# No postponed annotations: Hydra reads a plugin before it is a module, and dataclasses look theirs up there.
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mlrun.cli import device
from mlrun.cli.jobs import Jobs
from mlrun.cli.objective import objective
from mlrun.cli.tasks import TASKS
from mlrun.config.settings import Hardware


@dataclass(frozen=True)
class Job:
    """A point of a sweep: its folder, and the device that it wants."""

    sweep: Path
    name: str
    device: str
    find: DictConfig | None  # what it is to return, of a job that trains

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        return self.sweep / self.name

    def result(self) -> JobReturn:
        """Return what the sweeper is told of a job that has ended: its objective, from its folder."""
        found = JobReturn(status=JobStatus.COMPLETED)
        found.return_value = None if self.find is None else objective(self.folder, self.find)
        return found


def resolved(
    context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int, task_function: TaskFunction
) -> Job:
    """Return what is known of job `number`; a point of another sweeper than ours is composed to find out."""
    assert isinstance(task_function, Jobs)
    point = task_function.points.get(tuple(overrides))
    if point is not None:
        return Job(point.folder.parent, point.folder.name, *_wanted(point.settings, point.folder))
    job = context.config_loader.load_sweep_config(config, list(overrides))
    job.hydra.job.num = number
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job)
    try:
        sweep, name = Path(str(job.hydra.sweep.dir)), str(job.hydra.sweep.subdir)
        return Job(sweep, name, *_wanted(job, sweep / name))
    finally:
        HydraConfig.instance().cfg = before


def _wanted(settings: DictConfig, folder: Path) -> tuple[str, DictConfig | None]:
    """Return the device, and what is to be returned."""
    if not TASKS[settings.task].trains:
        return "cpu", None
    hardware = OmegaConf.to_object(settings.hardware)
    assert isinstance(hardware, Hardware)
    return device.settled(hardware, folder)[0].device, settings.find
