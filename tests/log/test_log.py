"""Claims about the log: no record twice or lost, readable lines, and W&B as a listener that cannot hurt."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate
from wandb_read import read_run

from mlrun.errors import UserError
from mlrun.log import doing, log
from mlrun.log.console import BLOCKS, Bar, Lines, Pace, console, short, sparkline, thousands, wrapped
from mlrun.log.jsonl import Jsonl
from mlrun.log.sink import Record, Sink, series
from mlrun.log.tensorboard import TensorBoardLogger
from mlrun.log.wandb import WandbLogger, WandbSink, run_id
from mlrun.units import duration

CONF = Path(__file__).resolve().parents[2] / "conf" / "logger"
PLAN: dict[str, Any] = {
    "stages": [
        {"stage": 0, "level": 1, "steps": 10, "flops": 100.0, "sizes": {"embed": 8}},
        {"stage": 1, "level": 2, "steps": 40, "flops": 100.0, "sizes": {"embed": 4}},
        {"stage": 2, "level": 1, "steps": 80, "flops": 800.0, "sizes": {"embed": 8}},
    ]
}


def record(kind: str = "train", step: int = 1, stage: int = 0, flops: float = 10.0, **values: Any) -> dict[str, Any]:
    level = PLAN["stages"][stage]["level"]
    at = {"step": step, "tokens": 64 * step, "flops": flops, "flops_body": flops / 2, "seconds": flops / 5}
    values = {"loss": 3.25, "lr": 1e-3, "tokens_per_second": 12_345.0} | values if kind == "train" else values
    return {"kind": kind, "stage": stage, "level": level, **at, **values}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# log.jsonl


def test_every_record_is_one_line_readable_at_once(tmp_path: Path) -> None:
    truth = Jsonl(tmp_path / "log.jsonl")
    for step in range(3):
        truth.write(record(step=step))
        assert [r["step"] for r in lines(tmp_path / "log.jsonl")] == list(range(step + 1))
    truth.close()
    truth.close()


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    with log.Log(Jsonl(tmp_path / "log.jsonl")) as opened:
        opened.write(record(loss=float("nan"), grad_norm=float("inf"), inner={"x": [float("-inf"), 1.0]}))
    text = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    (found,) = lines(tmp_path / "log.jsonl")
    assert (found["loss"], found["grad_norm"], found["inner"]) == (None, None, {"x": [None, 1.0]})


def test_resuming_loses_no_record_and_writes_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = Jsonl(path)
    for step in (1, 2):
        first.write(record(step=step))
    kept = first.offset()
    for step in (3, 4):  # after the checkpoint: these steps will be trained again
        first.write(record(step=step))
    first.close()
    with open(path, "a") as torn:
        torn.write('{"kind": "tr')
    again = Jsonl(path, kept)
    assert [r["step"] for r in lines(path)] == [1, 2], (
        "what came after the checkpoint is gone before anything is written"
    )
    for step in (3, 4, 5):
        again.write(record(step=step))
    again.close()
    assert [r["step"] for r in lines(path)] == [1, 2, 3, 4, 5]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("left by a run that was killed before its first checkpoint\n")
    Jsonl(tmp_path / "log.jsonl").close()
    assert (tmp_path / "log.jsonl").read_text() == ""


RECORD = '{"kind": "val"}\n'


@pytest.mark.parametrize("content", [None, RECORD, RECORD + '{"kind": "train", "half a line'])
def test_a_log_that_is_not_the_checkpoints_is_refused_and_untouched(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="20 bytes that the checkpoint recorded") as error:
        Jsonl(path, 20)
    assert len(error.value.problems) == 1
    assert (path.read_text() if path.exists() else None) == content


def test_a_logger_that_cannot_start_leaves_the_old_log_whole(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(UserError):
        log.start(tmp_path, {"wandb": WandbLogger(mode="sometimes")}, {}, PLAN, stream=io.StringIO())
    assert (tmp_path / "log.jsonl").read_text() == "{}\n"


def test_a_branch_is_named_on_the_console_and_is_a_series_of_its_own() -> None:
    at = record("val", 135, 2, 900.0, branch=0.5, loss=3.25, own_flops=500.0)
    (line,) = shown([at])
    assert line.startswith("stage 3/3 branch 50% |") and "val   3.2500" in line
    found = series(at)
    assert (found["eval/branch50/loss"], found["eval/branch50/own_flops"], found["step"]) == (3.25, 500.0, 135)
    assert "eval/loss" not in found and "branch" not in found


def test_every_listener_gets_every_record_and_the_exit_code(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Ear(Sink):
        def write(self, record: Record) -> None:
            seen.append(record["step"])

        def close(self, exit_code: int) -> None:
            seen.append(f"exit {exit_code}")

    with pytest.raises(ZeroDivisionError), log.Log(Jsonl(tmp_path / "log.jsonl"), [Ear(), Ear()]) as opened:
        opened.write(record(step=7))
        raise ZeroDivisionError
    assert seen == [7, 7, "exit 1", "exit 1"]


# The console


def shown(records: list[dict[str, Any]], interval: float = 10.0, seconds_apart: float = 4.0) -> list[str]:
    now = [0.0]
    stream = io.StringIO()
    sink = Lines(PLAN, stream, interval, lambda: now[0])
    for each in records:
        sink.write(each)
        now[0] += seconds_apart
    return stream.getvalue().splitlines()


def test_lines_are_as_promised() -> None:
    receipt = {"operator": "decoalesce", "alpha": 0.5, "loss_before": 3.5, "loss_after": 3.6125}
    records = [
        record(step=1, flops=0.0, tokens_per_second=None),
        record(step=9, flops=90.0),
        record("val", 10, flops=100.0, loss=3.5),
        record("transfer", 50, 2, 200.0, **receipt, relative_logit_change=2.5e-7, exact=True, tolerance=1e-4),
        record("stage", 130, 2, 1000.0, stage_seconds=12.3456),
        record("val", 130, 2, 1000.0, loss=None),
    ]
    assert shown(records, interval=0.0) == [
        "stage 1/3 level 1 |   0.0% | step       1 | loss  3.2500 | lr 1.00e-03 |    n/a tok/s | ETA      n/a",
        "stage 1/3 level 1 |   9.0% | step       9 | loss  3.2500 | lr 1.00e-03 |  12.3k tok/s | ETA 3.03 min",
        "stage 1/3 level 1 |  10.0% | step      10 | val   3.5000",
        "stage 3/3 level 1 |  20.0% | step      50 | decoalesce, alpha 0.5: loss 3.5000 -> 3.6125, "
        "logits moved 2.5e-07 (exact within 1e-04)",
        "stage 3/3 level 1 | 100.0% | step     130 | stage done in 12s",
        "stage 3/3 level 1 | 100.0% | step     130 | val      n/a",
    ]


def test_at_most_one_training_line_an_interval_and_every_other_record() -> None:
    records = [record(step=i, flops=float(i)) for i in range(1, 7)]
    assert [line.split()[8] for line in shown(records)] == ["1", "4"]
    assert len(shown([record("val", i, loss=1.0) for i in range(6)])) == 6


def test_training_lines_have_one_width() -> None:
    found = shown([record(step=10**i, flops=10.0 * i, loss=10.0 ** -(i - 1)) for i in range(6)], interval=0.0)
    assert len({len(line) for line in found}) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_progress_on_a_terminal() -> None:
    stream = Terminal()
    sink = console(PLAN, stream)
    assert isinstance(sink, Bar)
    assert isinstance(console(PLAN, io.StringIO()), Lines)
    sink.write(record(step=1, flops=10.0))
    sink.write(record("val", 10, flops=100.0, loss=3.5))
    sink.write(record(step=50, stage=1, flops=200.0))
    sink.close(0)
    text = stream.getvalue()
    assert "val   3.5000" in text
    assert "stage 2/3 level 2" in text and "20%" in text and "loss 3.2500" in text


@pytest.mark.parametrize("columns", [80, 200])
def test_the_bar_fits_the_terminal_and_says_stage_loss_speed_and_both_etas(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    sink = console(PLAN, stream)
    for step in range(1, 41):
        sink.write(record(step=step, stage=2, flops=200.0 + 10 * step, loss=5 - step / 10))
    sink.close(0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = [line for line in plain.splitlines() if "loss" in line][-1]
    assert len(last.rstrip()) <= columns and "stage 3/3 level 1" in last and "loss 1.0000" in last
    assert "12.3k tok/s" in last and sparkline([3, 2, 1]) == BLOCKS[-1] + BLOCKS[4] + BLOCKS[0]
    assert ("ETA 1m20s/1m20s" if columns == 80 else "ETA stage 1m20s, all 1m20s") in last


def test_the_bar_says_what_is_evaluated_and_how_far_until_the_next_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    sink = console(PLAN, stream)

    def seen() -> str:
        assert isinstance(sink, Bar)
        stream.truncate(stream.seek(0))
        sink._progress.refresh()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())

    sink.write(record(step=9, flops=90.0))
    sink.doing("evaluating ema_text_perplexity", 1012, 4096)
    assert all(part in seen() for part in ("stage 1/3 level 1", "9%", "evaluating ema_text_perplexity 1012/4096"))
    assert max(len(line.rstrip()) for line in seen().splitlines()) <= 80
    sink.write(record("val", 10, flops=100.0, loss=3.5))
    assert "evaluating" not in seen() and "loss 3.2500" in seen()
    sink.close(0)


def test_a_file_has_a_line_of_an_evaluation_only_where_it_takes_long() -> None:
    now, stream = [0.0], io.StringIO()
    sink = Lines(PLAN, stream, 0.0, lambda: now[0])

    def evaluation(pieces: int) -> list[str]:
        stream.truncate(stream.seek(0))
        for done in range(pieces):
            sink.doing("evaluating text_perplexity", done, pieces)
            now[0] += 7
        return stream.getvalue().splitlines()

    assert evaluation(3) == [], "nothing is known before the first record"
    sink.write(record(step=9, flops=90.0))
    assert evaluation(4) == []
    sink.write(record("val", 9, flops=90.0, loss=3.5))
    place = "stage 1/3 level 1 |   9.0% | step       9 | evaluating text_perplexity"
    assert evaluation(14) == [f"{place} 5/14", f"{place} 10/14"], "at most one in 30 seconds"


def test_no_record_says_how_far_an_evaluation_is(tmp_path: Path) -> None:
    told: list[object] = []

    class Ear(Sink):
        def doing(self, what: str, done: int, of: int | None) -> None:
            told.append((what, done, of))

    with log.Log(Jsonl(tmp_path / "log.jsonl"), [Ear()]) as opened:
        opened.doing("held_out", 3, 8)
    assert told == [("held_out", 3, 8)] and (tmp_path / "log.jsonl").read_bytes() == b""


def test_what_belongs_to_no_training_is_shown_on_a_terminal_and_in_a_file_if_it_takes_long() -> None:
    for stream in (Terminal(), io.StringIO()):
        with doing.shown(stream) as tell:
            tell("pairs", 3, 8)
            time.sleep(0.2 if stream.isatty() else 0.0)
        assert ("evaluating pairs 3/8" in stream.getvalue()) == stream.isatty()
    said = [doing.so_far("glue", *how) for how in ((0, None), (3, None), (0, 8))]
    assert said == ["glue", "glue 3", "glue 0/8"]


def test_a_line_above_the_bar_breaks_between_words() -> None:
    line = "stage 2/4 level 2 |   4.3% | decoalesce, alpha 0.5: loss 5.3692 -> 5.9033"
    assert wrapped(line, 80) == line
    first, *others = wrapped(line, 40).split("\n")
    assert max(map(len, (first, *others))) <= 40 and all(part.startswith("    ") for part in others)
    assert " ".join(part.strip() for part in (first, *others)).split() == line.split()


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, "n/a"), (42.4, "42s"), (250, "4m10s"), (11_100, "3h05m"), (183_600, "2d03h")]
)
def test_a_time_has_at_most_six_columns(seconds: float | None, told: str) -> None:
    assert short(seconds) == told and sparkline([]) == ""


def test_eta_uses_each_levels_own_speed() -> None:
    pace = Pace(PLAN)
    assert pace.seconds_left() is None
    for stage, flops, seconds in ((0, 0.0, 0.0), (0, 100.0, 10.0), (1, 100.0, 10.0), (1, 150.0, 60.0)):
        pace.see(record(stage=stage, flops=flops) | {"seconds": seconds})
    # level 1 runs at 10 FLOP/s, level 2 at 1: 50 are left at level 2, 800 at level 1.
    assert pace.seconds_left() == pytest.approx(50 / 1 + 800 / 10)


def test_a_level_that_has_not_run_is_taken_at_the_average_speed() -> None:
    pace = Pace(PLAN)
    pace.see(record(flops=0.0) | {"seconds": 0.0})
    pace.see(record(flops=50.0) | {"seconds": 10.0})
    assert pace.seconds_left() == pytest.approx((50 + 100 + 800) / 5)


def test_unknown_numbers_are_said_to_be_unknown() -> None:
    assert (duration(None), thousands(None).strip()) == ("n/a", "n/a")
    assert {len(thousands(x)) for x in (None, 1.0, 999.9, 1e3, 99e3, 5e6, 2e9)} == {6}


# Loggers


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_logger_yaml_builds_and_finds_no_fault_with_itself(path: Path) -> None:
    for name, settings in yaml.safe_load(path.read_text()).items():
        assert name == path.stem, "messages name the key by the file"
        assert instantiate(settings).problems() == []


def test_wrong_settings_are_all_named() -> None:
    found = WandbLogger(mode="ofline", x="epochs").problems()
    assert [line.split(":")[0] for line in found] == ["logger.wandb.mode=ofline", "logger.wandb.x=epochs"]


def test_disabled_and_none_listen_to_nothing(tmp_path: Path) -> None:
    for loggers in ({"wandb": WandbLogger(mode="disabled")}, {}):
        with log.start(tmp_path, loggers, {}, PLAN, stream=io.StringIO()) as opened:
            opened.write(record())
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_online_without_a_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no API key") as error:
        WandbLogger(mode="online").start(tmp_path, {}, PLAN, 0)
    (line,) = error.value.problems
    assert line.startswith("logger.wandb.mode=online") and "\n" not in line


def test_levels_have_their_own_series_of_held_out_losses() -> None:
    assert series(record("val", 5, 0, loss=1.0))["eval/loss"] == 1.0
    assert series(record("val", 5, 1, loss=2.0))["eval/level2/loss"] == 2.0


def test_one_id_a_folder(tmp_path: Path) -> None:
    assert run_id(tmp_path) == run_id(tmp_path) == (tmp_path / "wandb_id").read_text().strip()


KEY = "0123456789abcdef" * 2 + "01234567"
SCRIPT = """
import json, sys
from pathlib import Path
from mlrun.log import log
from mlrun.log.wandb import WandbLogger
from test_log import PLAN, record
folder, resumed = Path(sys.argv[1]), sys.argv[2] == "resumed"
logger = WandbLogger(project="p", group="g", tags=("a", "b"), x="tokens", name="n")
keep = json.loads((folder / "keep").read_text()) if resumed else 0
with log.start(folder, {"wandb": logger}, {"seed": 0, "optimizer": {"lr": 0.5}}, PLAN, keep=keep) as opened:
    if not resumed:
        opened.write(record(step=1))
        opened.write(record("val", 1, loss=4.0))
        (folder / "keep").write_text(str(opened.offset()))
    else:
        opened.write(record("transfer", 1, 1, operator="coalesce", loss_before=4.0, loss_after=4.5, alpha=None,
                            relative_logit_change=0.1, exact=False, tolerance=None))
        opened.write(record(step=2, stage=1))
        opened.finish({"val_loss": 2.5, "ledger": {"seconds": {"training": 9.0}}})
"""


def in_a_process(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parent
    env = os.environ | {"PYTHONPATH": f"{here.parents[1]}:{here.parent}:{here}", "WANDB_API_KEY": KEY}
    env = {name: value for name, value in env.items() if name != "WANDB_MODE"}
    command = [sys.executable, "-c", code, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=180, check=True)


@pytest.fixture(scope="module")
def two_starts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], str]:
    """Return a folder where a run was started and resumed, its W&B log after each, and what was said."""
    folder, said, runs = tmp_path_factory.mktemp("run"), "", []
    for which in ("new", "resumed"):
        said += in_a_process(SCRIPT, folder, which).stderr
        runs.append(the_offline_run(folder))
    return folder, runs, said


def the_offline_run(folder: Path) -> dict[str, Any]:
    """Return what the one W&B log of a run folder holds."""
    (only,) = (folder / "wandb").glob("offline-run-*")
    return read_run(only)


def test_wandb_keeps_one_id_and_the_settings(two_starts: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, (first, second), _ = two_starts
    assert first["id"] == second["id"] == run_id(folder)
    assert (first["project"], first["name"], first["group"], first["tags"]) == ("p", "n", "g", ["a", "b"])
    assert first["config"]["optimizer"] == {"lr": 0.5}
    assert (first["exit_code"], second["exit_code"]) == (0, 0)


def test_wandb_gets_every_series_at_explicit_steps(two_starts: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, (first, second), _ = two_starts
    ((_, before),) = [(r["_step"], r) for r in first["history"] if "train/loss" in r]
    assert (before["_step"], before["train/loss"], before["eval/loss"], before["flops"]) == (1, 3.25, 4.0, 10.0)
    assert {"stage", "level", "tokens", "flops_body", "seconds", "train/lr"} <= before.keys()
    steps = {r["_step"]: r for r in second["history"]}
    assert (steps[1]["train/loss"], steps[1]["eval/loss"]) == (3.25, 4.0), "what was before the resume is there too"
    assert (steps[1]["transfer/loss_after"], steps[1]["transfer/operator"]) == (4.5, "coalesce")
    assert (steps[2]["train/loss"], steps[2]["level"]) == (3.25, 2)


def test_wandb_draws_over_the_chosen_axis(two_starts: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, (first, second), _ = two_starts
    assert first["metrics"]["*"] == second["metrics"]["*"] == "tokens"


def test_wandb_has_plan_and_summary(two_starts: tuple[Path, list[dict[str, Any]], str]) -> None:
    _, (first, second), _ = two_starts
    for start in (first, second):
        assert sum(any(key.startswith("plan/stages") for key in row) for row in start["history"]) == 1
    assert second["summary"]["val_loss"] == 2.5


def test_wandb_is_quiet_and_says_how_to_upload(two_starts: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, _, said = two_starts
    assert said.splitlines() == [f"W&B was offline; to upload: wandb sync {folder}/wandb/offline-run-*"] * 2


def test_the_key_is_written_nowhere(two_starts: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, _, said = two_starts
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in said


def test_jsonl_of_both_starts_is_whole(two_starts: tuple[Path, list[dict[str, Any]], str]) -> None:
    folder, _, _ = two_starts
    assert [(r["kind"], r["step"]) for r in lines(folder / "log.jsonl")] == [
        ("train", 1),
        ("val", 1),
        ("transfer", 1),
        ("train", 2),
    ]


class Broken:
    """A W&B run that fails from its third row on."""

    def __init__(self) -> None:
        self.rows = 0

    def define_metric(self, name: str, step_metric: str | None = None, hidden: bool = False) -> None:
        """Accept it."""

    def log(self, row: Any, step: int) -> None:
        self.rows += 1
        if self.rows > 2:
            raise ConnectionResetError("service\nis gone")

    def finish(self, exit_code: int) -> None:
        raise AssertionError("a dead service must not be waited for")


def test_when_wandb_breaks_training_goes_on_and_the_user_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Broken()
    opened = log.Log(Jsonl(tmp_path / "log.jsonl"), [WandbSink(run, tmp_path, "online", "flops", PLAN)])
    for step in range(1, 7):
        opened.write(record(step=step))
    opened.finish({"val_loss": 1.0})
    opened.close(0)
    assert run.rows == 3, "nothing more is sent"
    assert [r["step"] for r in lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    warning, remedy = capsys.readouterr().err.splitlines()
    assert warning == "W&B stopped at step 3 (service is gone); training goes on"
    assert remedy.endswith(f"mlrun task=resend runs={tmp_path}")


KILL = """
import os, signal, sys, time
from pathlib import Path
from mlrun.log import log
from mlrun.log.wandb import WandbLogger
from test_log import PLAN, record, service_of
with log.start(Path(sys.argv[1]), {"wandb": WandbLogger()}, {}, PLAN) as opened:
    for step in (1, 2):
        opened.write(record(step=step))
    time.sleep(1.6)
    os.kill(service_of(os.getpid()) if sys.argv[2] == "service" else os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    for step in (3, 4):
        opened.write(record(step=step))
print("trained to the end")
"""


RESEND = """
import sys
from pathlib import Path
from mlrun.log.resend import resend, settings
print(resend(Path(sys.argv[1]), settings(Path(sys.argv[1]), None)))
"""


def service_of(pid: int) -> int:
    """Return the process id of the W&B service that a process started."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            if rest.split()[1] == str(pid) and name.startswith("wandb-core"):
                return int(folder.name)
    raise AssertionError("no W&B service found")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the service")
def test_killing_the_wandb_service_does_not_end_the_run_and_the_log_can_be_sent_again(tmp_path: Path) -> None:
    out = in_a_process(KILL, tmp_path, "service")
    assert "trained to the end" in out.stdout
    assert len(out.stderr.splitlines()) == 2 and "Traceback" not in out.stderr
    config = {"logger": {"wandb": {"_target_": "mlrun.log.wandb.WandbLogger", "mode": "offline"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    in_a_process(RESEND, tmp_path)
    newest = max((tmp_path / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    found = read_run(newest)
    assert found["id"] == run_id(tmp_path)
    assert [r["_step"] for r in found["history"] if "train/loss" in r] == [1, 2, 3, 4]


CRASHES = """
import os, signal, sys, time
from pathlib import Path
from mlrun.log import log
from mlrun.log.wandb import WandbLogger
from test_log import PLAN, record
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
keep = int((folder / "keep").read_text()) if first > 1 else 0
with log.start(folder, {"wandb": WandbLogger()}, {}, PLAN, keep=keep) as opened:
    for step in range(first, last + 1):
        opened.write(record(step=step))
        if step % 3 == 0:
            (folder / "keep").write_text(str(opened.offset()))
    if sys.argv[4] == "killed":
        time.sleep(1.6)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_kills_no_offline_row_is_there_twice_and_none_is_missing(tmp_path: Path) -> None:
    """Each start trains again what came after the last checkpoint, here at every third step."""
    for first, last in ((1, 5), (4, 8)):
        with pytest.raises(subprocess.CalledProcessError):
            in_a_process(CRASHES, tmp_path, str(first), str(last), "killed")
    in_a_process(CRASHES, tmp_path, "7", "9", "ended")
    rows = the_offline_run(tmp_path)["history"]
    assert [r["_step"] for r in rows if "train/loss" in r] == list(range(1, 10))


VARIABLES = {"PROJECT": "theirs", "NAME": "called", "ENTITY": "us", "RUN_GROUP": "g", "TAGS": "a,b"}


@pytest.mark.parametrize("given", [{}, {"project": "ours", "name": "n", "entity": "e", "group": "h", "tags": ("c",)}])
def test_wandbs_own_variables_act_where_nothing_is_given(
    tmp_path: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    code = "from pathlib import Path; import sys; from mlrun.log.wandb import WandbLogger; from test_log import PLAN\n"
    in_a_process(f"{code}WandbLogger(**{given}).start(Path(sys.argv[1]), {{}}, PLAN, 0).close(0)", tmp_path)
    found = the_offline_run(tmp_path)
    wanted = given or {"project": "theirs", "name": "called", "entity": "us", "group": "g", "tags": ("a", "b")}
    assert {key: found[key] for key in wanted} == {**wanted, "tags": list(wanted["tags"])}


def test_wandbs_own_mode_acts_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert type(WandbLogger().start(tmp_path, {}, PLAN, 0)) is Sink
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    assert [line.split(":")[0] for line in WandbLogger().problems()] == ["WANDB_MODE=sometimes"]
    assert WandbLogger(mode="offline").problems() == []


@pytest.mark.slow
def test_online_without_an_answer_is_one_line_within_half_a_minute(tmp_path: Path) -> None:
    """A server that takes the connection and says nothing, which is slower than no network at all."""
    silent = socket.create_server(("127.0.0.1", 0))
    code = (
        "import os, sys, time; from pathlib import Path; from mlrun.errors import UserError\n"
        f"os.environ['WANDB_BASE_URL'] = 'http://127.0.0.1:{silent.getsockname()[1]}'\n"
        "from mlrun.log.wandb import WandbLogger\n"
        "began = time.monotonic()  # importing is not waiting\n"
        "try: WandbLogger(mode='online').start(Path(sys.argv[1]), {}, {'stages': []}, 0)\n"
        "except UserError as error: print(error, time.monotonic() - began)"
    )
    with silent:
        out = in_a_process(code, tmp_path)
    (line,) = (out.stdout + out.stderr).splitlines()
    assert line.startswith("logger.wandb.mode=online: allowed: a W&B run that starts (")
    assert float(line.split()[-1]) < 30


# TensorBoard


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every series of a run folder as its event files have it, in order."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for file in (folder / "tensorboard").iterdir():
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                numbers = value.tensor.float_val
                found.setdefault(value.tag, []).extend((event.step, number) for number in numbers)
    return found


def test_tensorboard_has_every_number_once_also_after_a_resume(tmp_path: Path) -> None:
    logger = {"tensorboard": TensorBoardLogger()}
    first = log.start(tmp_path, logger, {"seed": 0}, PLAN, stream=io.StringIO())
    first.write(record(step=1))
    first.write(record("val", 1, loss=4.0, copy_similarity_by_layer={"encoder.0": 0.5}))
    keep = first.offset()
    first.write(record(step=2))  # after the checkpoint: trained again
    first.close()
    again = log.start(tmp_path, logger, {"seed": 0}, PLAN, keep=keep, stream=io.StringIO())
    again.write(record(step=2))
    again.write(record("transfer", 2, 1, operator="coalesce", alpha=None, loss_after=4.5, exact=False))
    again.finish({"val_loss": 2.5})
    again.close()
    found = points(tmp_path)
    assert found["train/loss"] == [(1, 3.25), (2, 3.25)]
    assert found["eval/loss"] == [(1, 4.0)] and found["eval/copy_similarity_by_layer/encoder.0"] == [(1, 0.5)]
    assert found["transfer/loss_after"] == [(2, 4.5)]
    assert {"config/text_summary", "plan/text_summary", "summary/text_summary"} <= found.keys()
    assert not any(name.startswith(("transfer/operator", "transfer/exact", "transfer/alpha")) for name in found)


def test_tensorboard_counts_tokens_if_asked(tmp_path: Path) -> None:
    with log.start(tmp_path, {"t": TensorBoardLogger(x="tokens")}, {}, PLAN, stream=io.StringIO()) as opened:
        opened.write(record(step=3))
    assert points(tmp_path)["train/loss"] == [(192, 3.25)]


def test_without_the_library_tensorboard_is_one_line_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = TensorBoardLogger().problems()
    assert line == "logger=tensorboard: allowed: none, wandb; or pip install 'mlrun[tensorboard]'"


def test_two_loggers_listen_to_one_run(tmp_path: Path) -> None:
    loggers = {"wandb": WandbLogger(mode="disabled"), "tensorboard": TensorBoardLogger()}
    with log.start(tmp_path, loggers, {}, PLAN, stream=io.StringIO()) as opened:
        opened.write(record())
    assert points(tmp_path)["train/loss"] == [(1, 3.25)]


def test_a_logger_that_cannot_start_ends_those_that_did(tmp_path: Path) -> None:
    closed = []

    class Started(Sink):
        def close(self, exit_code: int) -> None:
            closed.append(exit_code)

    class Fine:
        def problems(self) -> list[str]:
            return []

        def start(self, *anything: object) -> Sink:
            return Started()

    with pytest.raises(UserError):
        log.start(tmp_path, {"a": Fine(), "b": WandbLogger(x="epochs")}, {}, PLAN, stream=io.StringIO())
    assert closed == [1] and list(tmp_path.iterdir()) == []


def test_a_killed_offline_run_keeps_its_rows(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        in_a_process(KILL, tmp_path, "itself")
    assert error.value.returncode == -signal.SIGKILL
    time.sleep(0.3)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    # W&B holds the newest row open for more of the same step.
    assert [r["_step"] for r in read_run(folder)["history"] if "train/loss" in r] == [1]
