"""What a launcher knows of a job of a sweep before it starts."""

# No postponed annotations: Hydra reads a plugin before it is a module, and dataclasses look theirs up there.
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig


@dataclass(frozen=True)
class Job:
    """A point of a sweep: its folder, and the device that it wants."""

    sweep: Path
    name: str
    device: str

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        return self.sweep / self.name


def resolved(context: HydraContext | None, config: DictConfig, overrides: Sequence[str], number: int) -> Job:
    """Return what the configuration of job `number` says of it."""
    assert context is not None
    job = context.config_loader.load_sweep_config(config, list(overrides))
    job.hydra.job.num = number
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job)
    try:
        device = job.hardware.device if job.task == "train" else "cpu"
        return Job(Path(str(job.hydra.sweep.dir)), str(job.hydra.sweep.subdir), device)
    finally:
        HydraConfig.instance().cfg = before
