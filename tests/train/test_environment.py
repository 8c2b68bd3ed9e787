"""Who a process is follows from torchrun's or SLURM's environment, and signals ask for the right thing."""

from __future__ import annotations

import os
import signal

import pytest

from mlrun.train.parallel.environment import PORTS, Process, process, rendezvous
from mlrun.train.signals import NOTHING, SAVE, STOP, Signals

STEP = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NTASKS": "16"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Process(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Process(3, 4, 1)),
        (STEP, Process(11, 16, 3)),
        (STEP | {"SLURM_GPUS_PER_TASK": "1"}, Process(11, 16, 0)),
        (STEP | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, Process(0, 2, 0)),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Process(0, 1, 0)),
    ],
)
def test_the_place_of_a_process(env: dict[str, str], expected: Process) -> None:
    assert process(env) == expected


def test_the_meeting_point_is_the_first_node_and_a_port_of_the_job() -> None:
    env = {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_JOB_ID": "20001"}
    found = rendezvous(env)
    assert found == {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": str(PORTS[1])}
    assert rendezvous(env | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == {} == rendezvous({})


@pytest.mark.parametrize("launcher", [False, True])
def test_signals_ask_a_launcher_hears_the_second_and_handlers_come_back(launcher: bool) -> None:
    heard: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        if launcher:
            signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
        signals = Signals()
        with signals.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked == (SAVE if launcher else STOP)
            signals.answered(SAVE)
            assert signals.asked == (NOTHING if launcher else STOP)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert signals.asked == STOP and heard == []
        if launcher:
            signals.pass_on()
        assert heard == ([signal.SIGUSR2] if launcher else [])
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_without_a_launcher_nothing_is_passed_on() -> None:
    signals = Signals()
    with signals.listening():
        os.kill(os.getpid(), signal.SIGUSR2)
    signals.pass_on()
    assert signals.asked == STOP
