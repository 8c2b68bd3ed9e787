"""A choice of a group as Hydra composes it: a file of conf/ may be a diff on others."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from mlrun.cli import command, points


def choice(group: str, name: str) -> DictConfig:
    """Return what a choice sets below the group's key."""
    (point,) = points.of(command.read([f"{group}={name}"]))
    return OmegaConf.create(OmegaConf.to_container(point.settings[group]))
