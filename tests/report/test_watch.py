"""A watched report follows its runs, and its page reads itself again only while somebody watches."""

from __future__ import annotations

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
    assert "2 runs, 2 of them ended" in told[0] and "not written" in told[1] and "last report was not" in told[2]


def test_ctrl_c_leaves_a_page_that_stays_as_it_is(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    told: list[str] = []

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    watch([tmp_path], tmp_path / "report", lambda report: None, told.append, sleep)
    assert REFRESH not in (tmp_path / "report/index.html").read_text()
    assert told == [f"no longer watched; {tmp_path / 'report' / 'index.html'} stays as it is"]
