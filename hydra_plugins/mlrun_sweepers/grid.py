"""Every combination of the values on the command line, as it was checked before Hydra began.

Hydra's own sweeper composes each point once more before the first starts, a tenth of a second each, and numbers their
folders anew: a sweep that grows would train finished runs again.
"""

# No postponed annotations: Hydra reads a plugin before it is a module, and dataclasses look theirs up there.
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mlrun.cli.jobs import Jobs


@dataclass
class GridConf:
    """`params` are sweeps that a YAML file brings, as on the command line: {seed: "0,1,2"}."""

    _target_: str = "hydra_plugins.mlrun_sweepers.grid.GridSweeper"
    params: dict[str, str] | None = None


class GridSweeper(Sweeper):
    """Gives the launcher every point at once, each with the name of its folder."""

    def __init__(self, params: dict[str, str] | None) -> None:
        pass  # the points were made of them

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        assert isinstance(task_function, Jobs)
        self.points = task_function.points
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Launch all points, in order."""
        return self.launcher.launch([list(overrides) for overrides in self.points], initial_job_idx=0)


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="mlrun")
