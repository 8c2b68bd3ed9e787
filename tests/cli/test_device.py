"""`hardware=auto`: what it means where, and that a run keeps it. A driver stands in that knows of GPUs."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import SMALL

from mlrun.cli import command, device, points, preflight, run_folder
from mlrun.cli.capacity import shares
from mlrun.cli.device import Gpu, settled
from mlrun.config.settings import Hardware
from mlrun.errors import UserError

ASKED = Hardware(device="auto", precision="auto", compile="auto", micro_batch="auto")
H200, T4, K80 = Gpu("NVIDIA H200", (9, 0)), Gpu("Tesla T4", (7, 5)), Gpu("Tesla K80", (3, 7))


class Driver:
    """NVML with the GPUs given; each call may fail."""

    def __init__(self, found: Sequence[Gpu], fails: str = "") -> None:
        self.found, self.fails = found, fails

    def __getattr__(self, name: str) -> Any:
        return lambda *given: 1 if name == self.fails else getattr(self, f"_{name}")(*given)

    def _nvmlInit_v2(self) -> int:
        return 0

    def _nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.found)
        return 0

    def _nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0

    def _nvmlDeviceGetName(self, handle: ctypes.c_void_p, name: Any, length: ctypes.c_uint) -> int:
        name.value = self.found[(handle.value or 0) - 1].name.encode()
        return 0

    def _nvmlDeviceGetCudaComputeCapability(self, handle: ctypes.c_void_p, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self.found[(handle.value or 0) - 1].capability
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what makes this a machine with the GPUs given, torch being built for them."""

    def with_gpus(*found: Gpu, torch: str = "2.13.0", triton: bool = True) -> None:
        monkeypatch.setattr(device, "_installed", lambda: found)
        monkeypatch.setattr(device, "version", lambda _: torch)
        monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: object() if triton else None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return with_gpus


def meant(asked: Hardware = ASKED, folder: Path | None = None) -> tuple[Any, ...]:
    hardware, why = settled(asked, folder)
    return hardware.device, hardware.precision, hardware.compile, hardware.micro_batch, why


def test_the_driver_is_asked_for_names_and_capabilities() -> None:
    assert device.asked(Driver([H200, T4])) == (H200, T4)
    assert device.asked(Driver([])) == ()
    assert device.asked(Driver([H200], fails="nvmlInit_v2")) == ()
    assert device.asked(Driver([H200], fails="nvmlDeviceGetCount_v2")) == ()
    assert device.asked(Driver([H200], fails="nvmlDeviceGetName")) == ()


def test_auto_is_the_gpu_if_there_is_one_and_else_the_processor(machine: Any) -> None:
    machine()
    assert meant() == ("cpu", "fp32", False, None, "no NVIDIA GPU is seen")
    machine(H200)
    assert meant() == ("cuda", "bf16", True, "auto", "NVIDIA H200")
    machine(H200, T4)  # a run may be given either
    assert meant() == ("cuda", "fp32", True, "auto", "NVIDIA H200, Tesla T4")
    machine(K80)
    assert meant() == ("cuda", "fp32", False, "auto", "Tesla K80")
    machine(H200, triton=False)
    assert meant()[2] is False
    machine(H200, torch="2.13.0+cpu")
    assert meant()[:2] == ("cpu", "fp32")
    assert meant()[4] == "NVIDIA H200 is there, but this torch is built for processors"


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0"])
def test_a_gpu_that_is_hidden_is_none(machine: Any, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    machine(H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert meant()[0] == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert meant()[0] == "cuda"


def test_what_is_said_stays(machine: Any) -> None:
    machine(H200)
    asked = Hardware(device="auto", precision="fp32", compile="auto", micro_batch=4)
    assert meant(asked)[:4] == ("cuda", "fp32", True, 4)
    assert meant(Hardware(device="cpu", precision="auto", compile="auto"))[:3] == ("cpu", "fp32", False)
    assert settled(Hardware(), None)[0] == Hardware()


def planned(folder: Path, *said: str) -> Any:
    asked = command.read([*SMALL, *said, f"run={folder}"])
    (checked,) = preflight.check(points.of(asked))
    assert checked.planned is not None
    return checked.planned


def test_the_plan_says_it_and_the_run_records_it(tmp_path: Path) -> None:
    config, plan = planned(tmp_path / "a")
    assert "hardware auto: cpu, fp32 (no NVIDIA GPU is seen)" in plan.notes
    assert config.resolved["hardware"]["device"] == config.settings.hardware.device == "cpu"
    assert device.settle(config, plan, tmp_path / "a") is plan
    assert not any("hardware" in note for note in planned(tmp_path / "a", "hardware=cpu")[1].notes)


def test_what_cannot_be_compiled_is_not_by_auto(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(H200)
    monkeypatch.setattr(preflight, "device_problems", lambda _: [])
    compiled = [
        planned(tmp_path / "a", *said)[0].settings.hardware.compile for said in ([], ["cycle.layer_dropout=0.5"])
    ]
    assert compiled == [True, False]


def test_a_run_goes_on_with_what_it_began_with(machine: Any, tmp_path: Path) -> None:
    began = {"device": "cpu", "precision": "bf16", "compile": False, "micro_batch": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"hardware": began}))
    machine(H200)
    assert meant(folder=tmp_path) == ("cpu", "bf16", False, None, "as this run began")
    asked = Hardware(device="cuda", precision="auto", compile="auto")
    assert meant(asked, tmp_path)[:3] == ("cuda", "bf16", True)  # another device, by choice
    (tmp_path / "config.yaml").write_text("hardware: {device: cpu}")
    assert meant(folder=tmp_path)[0] == "cuda"


def test_a_run_keeps_its_precision_on_another_device(machine: Any, tmp_path: Path) -> None:
    began = {"device": "cpu", "precision": "fp32", "compile": False, "micro_batch": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"hardware": began}))
    machine(H200)
    assert meant(replace(ASKED, device="cuda"), tmp_path)[:3] == ("cuda", "fp32", True)


def test_a_precision_that_is_not_that_of_the_run_is_refused() -> None:
    def differing(there: str | None, here: str) -> list[str]:
        return run_folder.differences({"hardware": {"precision": there}}, {"hardware": {"precision": here}})

    assert differing("fp32", "bf16") == ["hardware.precision (there fp32, here bf16)"]
    assert differing("fp32", "fp32") == differing("fp32", "auto") == differing(None, "bf16") == []
    assert run_folder.differences({}, {"hardware": {"precision": "bf16"}}) == []


def test_a_run_that_began_on_a_gpu_is_a_line_where_there_is_none(tmp_path: Path) -> None:
    config, _ = planned(tmp_path / "new")
    there = config.resolved | {"hardware": config.resolved["hardware"] | {"device": "cuda", "precision": "bf16"}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(there))
    with pytest.raises(UserError, match=r"hardware\.device=cuda: allowed: cpu; torch sees no GPU here"):
        planned(tmp_path / "run")
    with pytest.raises(UserError, match=r"undo: hardware\.precision \(there bf16, here fp32\)"):
        planned(tmp_path / "run", "hardware=cpu")
    hardware = planned(tmp_path / "run", "hardware=cpu", "hardware.precision=auto")[0].settings.hardware
    assert (hardware.device, hardware.precision) == ("cpu", "bf16")


def test_runs_side_by_side_get_a_gpu_each(machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted: list[str] = []

    def seen(at_a_time: int | None, processes: int, kind: str) -> Any:
        wanted.append(kind)
        return shares(at_a_time, processes, "cpu")

    machine(H200)
    monkeypatch.setattr(preflight, "device_problems", lambda _: [])
    monkeypatch.setattr(preflight.capacity, "shares", seen)
    preflight.check(points.of(command.read(["-m", "hydra/launcher=local", "seed=0,1", f"run={tmp_path / 'sweep'}"])))
    assert wanted == ["cuda"]


def test_a_job_of_a_cluster_finds_out_where_it_runs(machine: Any, tmp_path: Path) -> None:
    machine(H200)
    asked = command.read(["-m", "hydra/launcher=slurm", "seed=0,1", f"run={tmp_path / 'sweep'}"])
    for one in preflight.check(points.of(asked)):
        assert one.planned is not None
        assert one.planned[0].settings.hardware.device == "auto"


def test_looking_for_a_gpu_needs_no_torch() -> None:
    code = "import sys; from mlrun.cli import device; device.gpus(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
