"""Who a process is follows from torchrun's or SLURM's environment, and signals ask for the right thing."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mlrun.cli import messages
from mlrun.config.settings import Hardware
from mlrun.errors import UserError
from mlrun.train.parallel import processes
from mlrun.train.parallel.environment import PORTS, Process, process, rendezvous
from mlrun.train.parallel.processes import Ranks
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


@pytest.fixture
def a_terminal() -> Iterator[None]:
    """Give these signals their usual handlers: a shell's background job, or nohup, ignores them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("a_terminal")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_and_the_first_interrupt_stop_a_run_that_is_alone(number: signal.Signals) -> None:
    signals = Signals()
    with signals.listening():
        os.kill(os.getpid(), number)
        assert signals.asked == STOP
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)


@pytest.mark.usefixtures("a_terminal")
def test_a_second_interrupt_is_no_second_wish_where_a_launcher_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    signals = Signals()
    with signals.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.asked == STOP


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals()
        with signals.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.asked == NOTHING
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_port_that_is_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError) as caught:
            processes.start(Hardware())
    (line,) = caught.value.problems
    assert line.startswith(f"MASTER_ADDR:MASTER_PORT=127.0.0.1:{port}: ") and "choose a port that is free" in line


@pytest.mark.parametrize("world", [1, 2])
def test_shards_where_torch_makes_none_are_one_line(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """As torch 2.6 has it, on processors; nobody waits for another process."""
    monkeypatch.delattr(torch.cpu.Stream, "record_event", raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        processes.start(Hardware(sharding="fsdp"))
    (line,) = caught.value.problems
    assert line.startswith("hardware.sharding=fsdp: allowed: none; ") and "torch 2.7 or newer" in line


class Two(Ranks):
    """Two processes of which the other one has learning rate 5e-3 and no clipping."""

    def together(self, step: Callable[[], Any]) -> list[Any]:
        mine = step()
        return [
            mine,
            "another" if isinstance(mine, str) else mine | {"optimizer.lr": "0.005", "optimizer.clip": "null"},
        ]


def test_processes_with_other_settings_are_refused_and_the_keys_named() -> None:
    settings = {"seed": 0, "optimizer": {"lr": 1e-2, "clip": 1.0}}
    processes.same_settings(Ranks(0, 1, torch.device("cpu")), settings)
    with pytest.raises(UserError) as caught:
        processes.same_settings(Two(0, 2, torch.device("cpu")), settings)
    (line,) = caught.value.problems
    assert "optimizer.clip (1.0 in process 0, null in process 1); optimizer.lr (0.01 in process 0, 0.005" in line
    assert "seed" not in line and caught.value.common


class Both(Ranks):
    """Two processes of which the other one fails."""

    def together(self, step: Callable[[], Any]) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(1, (None, UserError("no"))))
            return super().together(step)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
def test_what_all_processes_raise_is_told_by_one(
    rank: int, shared: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)

    def fails() -> None:
        if shared:
            Both(rank, 2, torch.device("cpu")).together(lambda: None)
        raise UserError("no")

    with pytest.raises(SystemExit) as ended, messages.user_errors(everywhere=True):
        fails()
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("mlrun: no\n" if rank == 0 or not shared else "")
