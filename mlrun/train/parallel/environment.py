"""Which process of how many this is, as torchrun or SLURM's srun say in the environment. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

# Ports that two jobs on one node hardly ever share: the job's number decides.
PORTS = range(20000, 40000)


@dataclass(frozen=True)
class Process:
    """One process among `world`; `local` counts the processes of its node, and so the GPUs that it may take."""

    rank: int
    world: int
    local: int


def process(env: Mapping[str, str] = os.environ) -> Process:
    """Return this process's place: torchrun's if it started us, else srun's, else alone.

    Only a job step has SLURM_STEP_NUM_TASKS: a plain `python` in a batch script of many tasks is one process.
    """
    if "RANK" in env:
        return Process(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]))
    if "SLURM_STEP_NUM_TASKS" in env:
        # With --gpus-per-task a process sees its own GPU only, as number 0.
        own = "SLURM_GPUS_PER_TASK" in env
        local = 0 if own else int(env["SLURM_LOCALID"])
        return Process(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), local)
    return Process(0, 1, 0)


def rendezvous(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT as far as they are missing and SLURM knows: the node that srun ran on."""
    if "SLURM_LAUNCH_NODE_IPADDR" not in env:
        return {}
    port = PORTS[int(env["SLURM_JOB_ID"]) % len(PORTS)]
    known = {"MASTER_ADDR": env["SLURM_LAUNCH_NODE_IPADDR"], "MASTER_PORT": str(port)}
    return {name: value for name, value in known.items() if name not in env}
