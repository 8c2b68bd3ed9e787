"""A watched report follows its runs, and its page reads itself again only while somebody watches."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import fake_runs as fake

from mlrun.report.build import Report
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


def test_a_signal_from_the_keyboard_ends_the_command_in_peace(tmp_path: Path) -> None:
    """As a terminal sends it; the child gets Python's own handler, which a shell in the background takes away."""
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    page = tmp_path / "a/report/index.html"
    child = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'mlrun'; "
    child += "from mlrun.__main__ import main; main()"
    command = [sys.executable, "-u", "-c", child, "task=report", f"runs={tmp_path}", "watch=true"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        told = next((line for line in running.stdout if "Ctrl-C" in line), None)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
    assert told is not None and (running.returncode, err) == (0, "")
    assert "no longer watched" in out and REFRESH not in page.read_text()
