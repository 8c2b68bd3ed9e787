"""A watched report follows its runs, and its page reads itself again only while somebody watches."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fake_runs as fake
import pytest

from mlrun.report.build import Report
from mlrun.report.read import above, place
from mlrun.report.watch import INTERVAL, watch

REFRESH = '<meta http-equiv="refresh"'


def test_it_is_written_again_when_a_run_has_something_new_and_only_then(tmp_path: Path) -> None:
    one = fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    page, told, shown, slept = tmp_path / "report/index.html", list[str](), list[Report](), list[float]()
    pages: list[str] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        pages.append(page.read_text())
        match len(slept):
            case 1:
                page.unlink()
                page.write_text("kept")
            case 2:
                fake.run(tmp_path / "b", "2level", fake.TWO)
            case 3:
                (one / "plan.json").write_text("{half")
            case 4:
                raise KeyboardInterrupt

    watch([tmp_path], tmp_path / "report", shown.append, told.append, sleep)
    assert len(shown) == 1 and len(slept) == 4 and all(seconds >= INTERVAL for seconds in slept)
    assert REFRESH in pages[0] and pages[1] == "kept" and REFRESH in pages[2] and "2level" in pages[2]
    assert "Ctrl-C ends it" in told[0] and "2 runs, 2 of them ended" in told[1] and "not written" in told[2]
    assert "last report was not" in told[3]
    assert REFRESH not in page.read_text() and "2level" in page.read_text()


def test_ctrl_c_leaves_a_page_that_stays_as_it_is(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    told: list[str] = []

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    watch([tmp_path], tmp_path / "report", lambda report: None, told.append, sleep)
    assert REFRESH not in (tmp_path / "report/index.html").read_text()
    assert told[1:] == [f"no longer watched; {tmp_path / 'report' / 'index.html'} stays as it is"]


def test_runs_may_go_all_of_them_and_come_back(tmp_path: Path) -> None:
    fake.run(tmp_path / "all/a", "scratch", fake.SCRATCH)
    fake.run(tmp_path / "all/b", "2level", fake.TWO)
    told, slept = list[str](), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        match len(slept):
            case 1:
                shutil.rmtree(tmp_path / "all/b")
            case 2:
                (tmp_path / "all/a").rename(tmp_path / "a")
            case 4:
                (tmp_path / "a").rename(tmp_path / "all/a")
            case 5:
                shutil.rmtree(tmp_path / "all")
                raise KeyboardInterrupt

    watch([tmp_path / "all"], None, lambda report: None, told.append, sleep)
    page = tmp_path / "all/report/index.html"
    assert [line.partition(" ")[2] for line in told[1:4]] == [
        f"{page}: 1 runs, 1 of them ended",
        f"not written: runs={tmp_path / 'all'}: allowed: folders that hold config.yaml, plan.json, log.jsonl; "
        "name a run folder or one above it",
        f"{page}: 1 runs, 1 of them ended",
    ]
    assert told[4].startswith("the last report was not written: runs=") and len(told) == 5


def test_the_page_of_a_folder_with_one_run_lies_where_later_runs_will(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    watch([tmp_path], None, lambda report: None, lambda line: None, sleep)
    assert (tmp_path / "report/index.html").is_file() and not (tmp_path / "a/report").exists()


def test_a_second_ctrl_c_leaves_the_page_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    told: list[str] = []

    def interrupt(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    def sleep(seconds: float) -> None:
        monkeypatch.setattr("mlrun.report.watch.build", interrupt)
        interrupt()

    watch([tmp_path], None, lambda report: None, told.append, sleep)
    page = tmp_path / "report/index.html"
    assert told[1:] == [f"the last report was not written: interrupted; {page} stays as it is"]
    assert REFRESH not in page.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_leaves_a_page_that_stays(number: int, code: int, tmp_path: Path) -> None:
    """As a terminal sends it; the child gets Python's own handler, which a shell in the background takes away."""
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    page = tmp_path / "report/index.html"
    child = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'mlrun'; "
    child += "from mlrun.__main__ import main; main()"
    command = [sys.executable, "-u", "-c", child, "task=report", f"runs={tmp_path}", "watch=true"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        told = next((line for line in running.stdout if "Ctrl-C" in line), None)
        running.send_signal(number)
        out, err = running.communicate(timeout=120)
    assert told is not None and running.returncode == code and len(err.splitlines()) == (code != 0)
    assert ("no longer watched" in out) == (code == 0) and REFRESH not in page.read_text()


def test_the_nearest_folder_above_is_found_for_names_of_either_kind(tmp_path: Path) -> None:
    assert above([tmp_path / "a/b", tmp_path / "a/c"]) == tmp_path / "a" and above([Path("x")]) == Path("x")
    assert above([Path("x/a"), Path("x/b")]) == Path("x") and above([Path("x"), Path.cwd() / "y"]) == Path.cwd()


def test_one_run_of_a_folder_is_reported_where_three_would_be(tmp_path: Path) -> None:
    runs = [tmp_path / "all/a", tmp_path / "all/b"]
    for run in runs:
        run.mkdir(parents=True)
    assert place([tmp_path / "all"], runs[:1]) == place([tmp_path / "all"], runs) == tmp_path / "all"
    assert place([runs[0]], runs[:1]) == runs[0] and place(runs, runs) == tmp_path / "all"
    assert place([tmp_path / "all/*"], runs[:1]) == runs[0] and place([tmp_path / "*"], runs) == tmp_path / "all"
