"""The page: everything that the report says is on it, nothing of a user runs in it, and it asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fake_runs as fake
import pytest
import yaml

from mlrun.report import charts, grid, layers, tables
from mlrun.report.build import build
from mlrun.report.compare import Group, compare
from mlrun.report.notes import DEFINITIONS, notes
from mlrun.report.page import answer, index, parts
from mlrun.report.page.group import control
from mlrun.report.read import find, read_all
from mlrun.report.sentences import sentences
from mlrun.units import human

EVIL = """</script><script>document.title='ran'</script><img src=x onerror="document.title='ran'">|'&amp;"""


def read(folder: Path) -> tuple[tuple[Group, ...], list[str], str]:
    """Return groups, notes and the page of all runs in a folder."""
    groups = tuple(compare(read_all(find([folder]))))
    said = list(notes(groups))
    return groups, said, index.page(groups, said)


def island(text: str) -> Any:
    """Return what the page's charts are drawn from."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def words(text: str) -> str:
    """Return what a reader sees: no tags, no scripts, no entities, single spaces; code between backticks."""
    body = re.sub(r"</?code>", "`", re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL))
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def of_grid(folder: Path) -> Path:
    """Write a baseline at two rates and a V-cycle at two values of alpha by three of the width."""
    for lr in (1e-3, 2e-3):
        fake.run(folder / f"scratch-{lr}", "scratch", fake.SCRATCH, lr=lr)
    for alpha in (0.25, 0.5):
        for width in (1, 2, 4):
            changes = {"cycle": {"alpha": alpha}, "coarsening": {"width": width, "ffn": width}}
            fake.run(
                folder / f"{alpha}-{width}", "2level", fake.TWO, lr=2e-3, quality=alpha / 10 - width / 50, **changes
            )
    return folder


def looked_at(folder: Path) -> None:
    """Let a run look at two layers at each of its evaluations."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seen = {key: {f"blocks.{layer}": 1.0 + layer for layer in range(2)} for key in layers.QUANTITIES}
    looks = [{**line, "kind": "health", "health_flops": 1, **seen} for line in lines if line["kind"] == "val"]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*lines, *looks)))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Group, ...], list[str], str]:
    return read(fake.sweep(tmp_path_factory.mktemp("page"), (0, 1)))


@pytest.fixture(scope="module")
def recorded() -> tuple[tuple[Group, ...], list[str], str]:
    return read(fake.RECORDED)


# What is said


def test_every_sentence_note_and_table_of_the_report_is_on_the_page(recorded: Any, swept: Any) -> None:
    for groups, said, text in (recorded, swept):
        seen = words(text)
        assert said and all(" ".join(note.split()) in seen for note in said)
        assert all(sentence in seen for group in groups for sentence in sentences(group))
        of_groups = (tables.annealed, tables.savings, tables.sweep, tables.endings, tables.transfers)
        found = [table for group in groups for of in of_groups if (table := of(group)).rows]
        found.append(tables.runs([run for group in groups for run in group.runs]))
        cells = [cell for table in found for row in table.rows for cell in row]
        assert all(" ".join(cell.split()) in seen for cell in cells)


def test_the_answer_comes_first(swept: Any) -> None:
    groups, _, text = swept
    top = text.partition("<section")[0]
    shown = re.findall(r'<p class="answer">(.*?)</p>', top)
    assert [html.unescape(re.sub("<[^>]*>", "", one)) for one in shown] == [sentences(groups[0])[0]]
    assert top.count('<figure class="chart"') == 1 and text.count('data-kind="curves" data-group="1"') == 1


def test_a_method_whose_name_has_a_bracket_does_not_cut_the_answer_off(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    folder = fake.run(tmp_path / "b", "grow", fake.GROW, quality=0.1)
    (folder / "config.yaml").write_text(yaml.safe_dump(fake.config("grow") | {"name": "stairs"}))
    shown = re.findall(r'<p class="answer">(.*?)<span', read(tmp_path)[2])
    assert re.fullmatch(r"stairs \(grow\) reaches the baseline&#x27;s loss with [\d.]+% fewer FLOPs", shown[0])


def test_captions_explain_what_is_drawn_and_nothing_else(recorded: Any, swept: Any) -> None:
    of = {kind: f'data-kind="{kind}".*?<figcaption>(.*?)</figcaption>' for kind in ("annealed", "curves")}
    (annealed,), (curves,) = (re.findall(of[kind], recorded[2], re.DOTALL) for kind in of)
    assert "Diamonds" in curves and "strips" in curves and "dotted line is L*" in curves
    assert "dotted line is L*" in annealed and "grey line" not in annealed and "dashed" not in annealed
    (plain,) = re.findall(of["curves"], swept[2], re.DOTALL)
    assert "Diamonds" not in plain and "strips" in plain and "A dot is the first crossing" in plain


def test_groups_are_called_by_what_they_are(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    fake.run(tmp_path / "b", "2level", fake.TWO)
    fake.run(tmp_path / "c", "scratch", fake.SCRATCH, batch=16)
    groups, _, text = read(tmp_path)
    heads = re.findall(r'<section id="group-\d+"><h2>(.*?)</h2>', text)
    assert heads == [tables.group_line(group).removesuffix(".") for group in groups] and "batch 16" in heads[1]
    links = re.findall(r'<a href="#group-\d+">(.*?)</a>', text)
    assert all(tables.model(group.runs[0]) in link for group, link in zip(groups, links, strict=True))


def test_a_group_that_is_there_as_a_control_says_so(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    fake.run(tmp_path / "b", "scratch", fake.SCRATCH, batch=16)
    groups = read(tmp_path)[0]
    (run,) = groups[1].runs
    first = replace(groups[0], controls={run.seed: (run,)})
    told = control([1])
    assert told in words(index.page((first, groups[1]), [])) and told not in words(index.page(groups, []))


@pytest.mark.parametrize("status", ["failed", None])
def test_a_page_without_an_answer_says_what_is_missing(tmp_path: Path, status: str | None) -> None:
    plan = fake.plan(fake.SCRATCH)
    fake.write(tmp_path / "a", fake.config(), plan, fake.straight(plan, [5.0, 4.0, 3.0])[:-1], status)
    top = words(read(tmp_path)[2].partition("<section")[0])
    assert answer.NOTHING in top and f"{tmp_path / 'a'} is" in top.replace("failed", "is")


def test_a_baseline_alone_says_what_to_run_next(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    assert answer.NEXT in words(read(tmp_path)[2].partition("<section")[0])


def test_of_many_runs_and_methods_the_first_are_seen_and_the_rest_is_there(tmp_path: Path) -> None:
    fake.run(tmp_path / "scratch", "scratch", fake.SCRATCH)
    many = parts.SEEN + 3
    for k in range(many):
        fake.run(tmp_path / f"m{k:02}", "2level", fake.TWO, cycle={"alpha": 0.5 + k / 100})
    text = read(tmp_path)[2]
    bars = text.partition("Ledger by stage")[2].partition("stages of")[0].split("<details>")
    assert [part.count('class="bar"') for part in bars[:2]] == [parts.SEEN, many + 1 - parts.SEEN]
    settings = text.partition("Settings that differ")[2].partition("<h3>")[0].split("<details>")
    assert [part.count('class="settings"') for part in settings] == [parts.SEEN, many - parts.SEEN]
    receipts = text.partition("Transfers:")[2].partition("<h3>")[0].split("<details>")
    assert [part.count("<tr>") - 1 for part in receipts] == [parts.SEEN, 2 * many - parts.SEEN]
    assert f"The commands of {many + 1} runs" in words(text)


def test_numbers_are_written_for_people(swept: Any) -> None:
    groups, _, text = swept
    rows = [row for of in (tables.transfers(groups[0]), tables.runs(groups[0].runs)) for row in of.rows]
    assert not [cell for row in rows for cell in row if re.fullmatch(r"[\d.]+e[-+]?0?\d+", cell)]
    run = groups[0].runs[0]
    assert run.last["flops"] and tables.runs(groups[0].runs).rows[0][6] == human(run.last["flops"])
    commit = fake.MACHINE["commit"]
    versions = text.partition("Starts, by commit")[2].partition("</table>")[0]
    assert commit not in versions and commit[:10] in versions


def test_the_rules_of_every_report_are_folded_and_what_is_true_of_these_runs_is_not(swept: Any) -> None:
    _, said, text = swept
    section = text.partition('<section id="notes">')[2].partition("</section>")[0]
    plain, folded = (words(part) for part in section.split("<details>"))
    assert all(note in (folded if note in DEFINITIONS else plain) for note in (" ".join(n.split()) for n in said))
    assert plain != "Notes"


def test_runs_without_a_baseline_have_a_page_that_says_so(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "2level", fake.TWO)
    _, said, text = read(tmp_path)
    assert answer.NOTHING in words(text) and all(" ".join(note.split()) in words(text) for note in said)
    assert island(text)["groups"]["1"]["target"] is None


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    log = fake.records(fake.TWO)
    next(record for record in log[len(log) // 2 :] if record["kind"] == "val")["loss"] = None
    fake.write(tmp_path / "b", fake.config("2level"), fake.plan(fake.TWO), log)
    (curve,) = [c for c in island(read(tmp_path)[2])["groups"]["1"]["curves"] if c["name"] != "scratch (baseline)"]
    losses = [point[-1] for point in curve["seeds"][0]["points"]]
    assert losses.count(None) == 1 and losses[0] is not None


def test_settings_versions_and_the_ledger_come_from_the_run_folders(recorded: Any) -> None:
    groups, _, text = recorded
    seen = words(text)
    commits = {start["commit"] for run in groups[0].runs for start in run.starts}
    assert commits and all(commit in seen for commit in commits)
    assert "cycle.name scratch 2level" in seen and "optimizer.beta2=0.95" in seen
    steps = [stage["steps"] for run in groups[0].runs if run.summary for stage in run.summary["ledger"]["stages"]]
    assert f"{len(steps)} stages of {len(groups[0].runs)} runs" in seen
    assert text.count('<i class="branch"') == sum(len(run.branches) for run in groups[0].runs if run.branches)


def test_what_looking_at_the_layers_took_stands_beside_the_ledger(tmp_path: Path) -> None:
    fake.run(tmp_path / "plain", "scratch", fake.SCRATCH)
    assert "health=true" not in words(read(tmp_path)[2])
    looked = fake.run(tmp_path / "looked", "2level", fake.TWO)
    summary = json.loads((looked / "summary.json").read_text())
    summary["ledger"] |= {"health": {"looks": 7, "flops": summary["ledger"]["total"]["flops"] // 4}}
    (looked / "summary.json").write_text(json.dumps(summary))
    seen = words(read(tmp_path)[2])
    told, total = seen.partition("(health=true)")[2], summary["ledger"]["total"]["flops"]
    assert f"looked 7 {human(total)} {human(total // 4)} 25.0%" in told and "plain 7" not in told


def test_of_many_methods_the_first_are_seen_and_none_is_left_out(tmp_path: Path) -> None:
    groups, _, text = read(of_grid(tmp_path))
    top, (_, *others) = text.partition("<nav>")[0], sentences(groups[0])
    seen, folded = (words(part) for part in top.split("<details>"))
    assert all(one in seen for one in others[: parts.LISTED]) and len(others) > parts.LISTED + 1
    assert all(one in folded and one not in seen for one in others[parts.LISTED :])


def test_parts_of_a_task_are_folded(tmp_path: Path) -> None:
    told = {"metric": "accuracy", "value": 0.6, "stderr": 0.03, "n": 200, "version": 1, "guess": 0.5}
    for name, stages in (("scratch", fake.SCRATCH), ("2level", fake.TWO)):
        results = {task: told for task in ("pairs", "pairs/order", "glue/rte")}
        (fake.run(tmp_path / name, name, stages) / "evaluate.json").write_text(json.dumps(results))
    quality = read(tmp_path)[2].partition("Saving and quality")[2]
    seen, folded = (words(part) for part in quality.split("</details>")[0].split("<details>"))
    assert "glue/rte" in seen and "pairs" in seen and "pairs/order" not in seen
    assert "1 row of parts" in folded and "pairs/order" in folded and "glue/rte" not in folded


# What is drawn


def test_curves_are_those_of_the_logs(recorded: Any) -> None:
    groups, _, text = recorded
    found = island(text)["groups"]["1"]
    assert found["target"] == groups[0].loss.mean
    by_seed = {curve["name"]: curve["seeds"] for curve in found["curves"]}
    (run,) = [run for run in groups[0].baselines.values()]
    (seed,) = by_seed["scratch (baseline)"]
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    vals = [record for record in log if record["kind"] == "val" and "branch" not in record]
    assert [point[:3] for point in seed["points"]] == [[r["stage"], r["level"], r["step"]] for r in vals]
    assert [point[4] for point in seed["points"]] == [r["flops"] for r in vals]
    assert [point[-1] for point in seed["points"]] == pytest.approx([r["loss"] for r in vals], abs=1e-6)
    branch = next(record for record in log if "branch" in record and record["kind"] == "val")
    assert seed["endings"][0][4] == branch["own_flops"] and seed["endings"][0][0] == branch["branch"]


def test_loss_by_rate_has_every_rate_and_seed(swept: Any) -> None:
    groups, _, text = swept
    rates = {one["name"]: one["points"] for one in island(text)["groups"]["1"]["rates"]}
    assert [point[0] for point in rates["baseline"]] == [1e-3, 2e-3, 4e-3]
    assert [point[1] for point in rates["baseline"]] == [found.mean for found in groups[0].sweep.values()]
    assert all(len(point[2]) == 2 for point in rates["2level"]) and "grow" not in rates


def test_long_curves_are_thinned_by_stage_and_the_page_says_so(tmp_path: Path) -> None:
    fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    log = fake.records(fake.TWO, every=1)
    fake.write(tmp_path / "b", fake.config("2level"), fake.plan(fake.TWO), log)
    groups, _, text = read(tmp_path)
    (run,) = [run for run in groups[0].runs if run.folder.name == "b"]
    kept, points = charts.thinned(run.evaluations), run.evaluations
    assert len(points) > 1000 and len(kept) <= charts.POINTS
    changes = [point for p, q in pairwise(points) if p.stage != q.stage for point in (p, q)]
    assert len(changes) == 4 and all(point in kept for point in (points[0], *changes, points[-1]))
    assert f"Runs with more than {charts.POINTS} evaluations are thinned" in words(text)
    assert len(text) < 150_000


def test_a_grid_of_two_numbers_has_one_heat_map(tmp_path: Path) -> None:
    groups, _, text = read(of_grid(tmp_path))
    (found,) = grid.maps(groups[0])
    assert (found.y, found.x, found.fixed) == ("cycle.alpha", "coarsening.width", "")
    assert (found.xs, found.ys, len(found.cells)) == ((1, 2, 4), (0.25, 0.5), 6)
    row = found.cells[4, 0.5]
    assert row.pairs[0].run.folder.name == "0.5-4" and f'data-loss="{row.loss.mean}"' in text


def test_a_third_number_that_varies_is_held_fixed(tmp_path: Path) -> None:
    fake.run(tmp_path / "scratch", "scratch", fake.SCRATCH)
    for depth in (1, 2):
        for alpha in (0.25, 0.5):
            for noise in (0.0, 0.1):
                settings = {"cycle": {"alpha": alpha, "noise": noise}, "coarsening": {"depth": depth}}
                fake.run(tmp_path / f"{depth}-{alpha}-{noise}", "2level", fake.TWO, **settings)
    found = grid.maps(read(tmp_path)[0][0])
    assert len(found) == 6 and all(len(one.cells) == 4 for one in found)
    assert {one.fixed for one in found} == {f"cycle.alpha={v}" for v in (0.25, 0.5)} | {
        f"cycle.noise={v}" for v in (0.0, 0.1)
    } | {f"coarsening.depth={v}" for v in (1, 2)}


def test_rows_on_a_line_are_no_map(swept: Any) -> None:
    assert grid.maps(swept[0][0]) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("50%", 0.5), (2, 2.0), ("1e-3", 1e-3), (True, None), ("2 epochs", None), (None, None), ("rest", None)],
)
def test_settings_as_numbers(text: Any, value: float | None) -> None:
    assert grid.number(text) == value


# What a page may not do


def test_text_of_a_user_is_text(tmp_path: Path) -> None:
    fake.run(tmp_path / "a<b>&", "scratch", fake.SCRATCH)
    folder = fake.run(tmp_path / "b", "grow", fake.GROW, quality=0.1)
    settings = fake.config("grow", cycle={"name": EVIL}, coarsening={"units": EVIL}) | {"name": f"my {EVIL}"}
    (folder / "config.yaml").write_text(json.dumps(settings))
    _, _, text = read(tmp_path)
    assert EVIL.replace("|", "/") in json.dumps(island(text)).encode().decode("unicode_escape")
    assert EVIL.replace("|", "/") in words(text) and EVIL in words(text)
    assert "<img" not in text and "<b>" not in text and text.count("<script") == text.count("</script") == 2


def themes() -> dict[str, dict[str, str]]:
    """Return the colours of each theme, and of what is printed."""
    css = index.asset("page.css")
    blocks = {
        "light": css.partition(":root {")[2],
        "dark": css.partition(':root[data-theme="dark"] {')[2],
        "dark of the system": css.partition(":root:not([data-theme]) {")[2],
        "paper": css.partition("@media print")[2],
    }
    return {name: dict(re.findall(r"--(\w+): ([^;]*);", block.partition("}")[0])) for name, block in blocks.items()}


def luminance(colour: str) -> float:
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def blend(over: str, under: str, share: float) -> str:
    """Return a colour that covers a share of another."""
    pairs = [(int(over[at : at + 2], 16), int(under[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def hexed(parts: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in parts.split(","))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_have_the_contrast_of_wcag_aa(theme: str) -> None:
    found, css = themes()[theme], index.asset("page.css")
    ground, ink, soft, mark = (found[name] for name in ("ground", "ink", "soft", "mark"))
    off = float(re.findall(r'aria-pressed="false"\] \{ opacity: ([.\d]+)', css)[0])
    pale = {kind: float(re.findall(rf"\.bar i\.{kind} .*?opacity: ([.\d]+)", css)[0]) for kind in ("coarse", "branch")}
    text = [(ink, ground), (soft, ground), (soft, found["card"]), (mark, ground), (blend(ink, ground, off), ground)]
    text += [(ink, blend(hexed(found[cell]), ground, 0.55)) for cell in ("good", "bad")]
    assert [pair for pair in text if contrast(*pair) < 4.5] == []
    lines = [found[f"c{number}"] for number in range(1, 8)]
    lines += [blend(mark, ground, pale["coarse"]), blend(soft, ground, pale["branch"])]
    assert [line for line in lines if contrast(line, ground) < 3] == []
    assert "svg text.said { font-size: 13px; font-weight: 700; fill: var(--ink)" in css, "no text in a line's colour"


def test_the_system_gives_the_same_dark_and_paper_is_light() -> None:
    found = themes()
    assert found["dark"] == found["dark of the system"] and found["light"] == found["paper"] and found["light"]


def test_without_a_script_nothing_is_offered_that_needs_one(swept: Any) -> None:
    without = swept[2].partition("<noscript>")[2].partition("</noscript>")[0]
    assert "#theme, .hands, .drawn, .chart { display: none; }" in without and "loss.png" in without
    charts_ = re.findall(r'<h3 class="drawn">[^<]*</h3><figure class="chart"', swept[2])
    assert len(charts_) == swept[2].count('<figure class="chart"') > 0 and 'class="hint hands"' in swept[2]


def test_nothing_is_asked_of_a_network(recorded: Any, swept: Any) -> None:
    for _, _, text in (recorded, swept):
        assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|fetch\(|XMLHttp|import\(|url\((?!#)", text)
        assert re.findall(r'href="(?!#)([^"]*)"', text) == ["data:,"]
        assert len(text) < 200_000


def test_the_policy_lets_the_pages_own_script_run_and_nothing_else(swept: Any) -> None:
    text = swept[2]
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none';") and policy.endswith(f"script-src 'sha256-{digest}'")


def test_a_report_writes_the_page(tmp_path: Path) -> None:
    fake.run(tmp_path / "runs/a", "2level", fake.TWO)
    written = build([tmp_path / "runs"], tmp_path / "out").files
    assert tmp_path / "out/index.html" in written
    assert (tmp_path / "out/index.html").read_text() == read(tmp_path / "runs")[2]


# In a browser

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=3000",
    "--window-size=1200,900",
)  # fmt: skip
browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
TRAP = "<script>window.faults = []; addEventListener('error', (event) => faults.push(event.message));</script>"
# Uses every switch and writes what it saw into the page.
USER = """<script>
const seen = {}, one = (q, from = document) => from.querySelector(q);
const all = (q, from = document) => [...from.querySelectorAll(q)];
const chart = (kind) => one(`figure[data-kind=${kind}]`);
const texts = (kind) => all("svg.plot text", chart(kind)).map((node) => node.textContent);
seen.remembered = document.documentElement.dataset.theme || "none";
seen.theme = all("#theme button").map((button) => {
  button.click();
  const pressed = all("#theme button[aria-pressed=true]").map((node) => node.dataset.value);
  return [pressed.join(), getComputedStyle(document.body).backgroundColor];
});
const axes = ["training FLOPs", "training time", "tokens"];
const axis = () => texts("curves").filter((t) => axes.includes(t));
seen.axes = all(".switch button", chart("curves")).map((button) => { button.click(); return axis().join(); });
one(".switch button", chart("curves")).click();
seen.hidden = ["annealed", "curves", "rates"].filter(chart).map((kind) => {
  const count = () => all("svg.plot path", chart(kind)).length, before = count();
  one(".legend button", chart(kind)).click();
  const between = count();
  one(".legend button", chart(kind)).click();
  return [kind, between < before, count() === before];
});
const svg = one("svg.plot", chart("curves")), box = svg.getBoundingClientRect();
const at = (x, y) => ({ clientX: box.left + x, clientY: box.top + y, button: 0 });
const send = (name, x, y) => svg.dispatchEvent(new PointerEvent(name, at(x, y)));
const reset = one(".reset", chart("curves")), before = texts("curves").join();
send("pointerdown", 300, 150); send("pointermove", 500, 250); send("pointerup", 500, 250);
seen.zoomed = [!reset.hidden, texts("curves").join() !== before];
svg.dispatchEvent(new MouseEvent("dblclick"));
seen.whole = [reset.hidden, texts("curves").join() === before];
const mark = one("svg.plot .mark", chart("curves")).getBoundingClientRect();
send("pointermove", mark.left + mark.width / 2 - box.left, mark.top + mark.height / 2 - box.top);
seen.tip = one(".tip", chart("curves")).textContent;
one(".switch button[data-value=flops]", chart("curves")).click();
const press = (key) => svg.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
const shown = () => [one(".tip", chart("curves")).hidden, one(".tip", chart("curves")).textContent].join();
svg.focus({ preventScroll: true });
seen.keys = ["ArrowRight", "ArrowRight", "ArrowLeft"].map((key) => { press(key); return shown(); });
seen.keys.unshift(document.activeElement === svg);
send("pointerdown", 300, 150); send("pointermove", 500, 250); send("pointerup", 500, 250); press("Escape");
seen.escaped = reset.hidden;
const low = box.height - 30; // under the axis
send("pointerdown", 300, low); send("pointermove", 500, low + 28); send("pointerup", 500, low + 28);
seen.below = !reset.hidden;
press("Escape");
seen.unnamed = all("[role=group], svg.plot").filter((node) => !node.getAttribute("aria-label")).length;
seen.rates = chart("rates") && texts("rates");
const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
seen.over = all("svg.plot").flatMap((plot) => {
  const title = one("text[transform]", plot).getBoundingClientRect();
  const ticks = all("text[text-anchor=end]:not(.on)", plot).map((node) => [node, node.getBoundingClientRect()]);
  return ticks.filter(([, rect]) => rect.left < title.left || meet(rect, title)).map(([node]) => node.textContent);
});
seen.map = !chart("map") ? null : all(".switch button", chart("map")).map((button) => {
  button.click();
  const cells = all("td[data-loss]", chart("map"));
  return [cells[0].textContent, new Set(cells.map((cell) => cell.style.background)).size > 1];
});
seen.layers = !chart("health") ? null : all(".switch button", chart("health")).map((button) => {
  button.click();
  return [texts("health").includes(button.textContent), all("svg.plot path", chart("health")).length];
});
seen.wide = document.documentElement.scrollWidth <= innerWidth;
seen.title = document.title;
seen.faults = faults;
document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
</script>"""


def opened(file: Path, profile: Path, *flags: str) -> str:
    """Return the page's document after its scripts; fails on anything that it says on the console."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console
    return done.stdout


def used(text: str, folder: Path) -> Any:
    """Return what a user of the page sees; the policy would forbid this user, and is left out."""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', TRAP, text).replace("</body>", USER + "</body>")
    (folder / "used.html").write_text(free)
    dom = opened(folder / "used.html", folder / "profile")
    return json.loads(html.unescape(re.findall(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[0]))


@browser
def test_each_switch_of_the_page_works_in_a_browser(recorded: Any, tmp_path: Path) -> None:
    seen = used(recorded[2], tmp_path)
    assert (seen["faults"], seen["map"], seen["wide"]) == ([], None, True)
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 26)"
    assert [seen["theme"][i] for i in (1, 2)] == [["light", light], ["dark", dark]]
    assert seen["axes"] == ["training FLOPs", "training time", "tokens"]
    assert seen["hidden"] and all(gone and back for _, gone, back in seen["hidden"])
    assert (seen["zoomed"], seen["whole"]) == ([True, True], [True, True])
    assert "seed 0" in seen["tip"] and "loss " in seen["tip"]
    focused, first, second, again = seen["keys"]
    assert focused and first == again != second and first.startswith("false,") and "loss " in first
    assert (seen["escaped"], seen["below"], seen["unnamed"], seen["over"]) == (True, True, 0, [])


@browser
def test_axes_have_the_rates_that_were_tried_and_no_number_lies_on_another_text(swept: Any, tmp_path: Path) -> None:
    seen = used(swept[2], tmp_path)
    assert {"0.001", "0.002", "0.004"} <= set(seen["rates"]) and "0.003" not in seen["rates"]
    (tmp_path / "flat").mkdir()
    plan = fake.plan(fake.SCRATCH)
    for lr in (1e-3, 2e-3):
        for seed, loss in ((0, 3.3571), (1, 3.3573)):
            log = fake.straight(plan, [3.36, 3.3575, loss])
            fake.write(tmp_path / f"runs/{lr}-{seed}", fake.config("scratch", seed, lr), plan, log)
    fake.run(tmp_path / "runs/grow", "grow", fake.GROW)
    seen = used(read(tmp_path / "runs")[2], tmp_path / "flat")
    assert (seen["faults"], seen["over"]) == ([], []) and any(len(text) > 4 for text in seen["rates"])


@browser
def test_a_page_with_a_heat_map_and_an_evil_name_in_a_browser(tmp_path: Path) -> None:
    folder = of_grid(tmp_path / "runs")
    other = fake.run(folder / "evil", "grow", fake.GROW, lr=2e-3)
    (other / "config.yaml").write_text(json.dumps(fake.config("grow", lr=2e-3, cycle={"name": EVIL})))
    looked_at(folder / "0.25-1")
    groups, _, text = read(folder)
    row = next(iter(grid.maps(groups[0]))).cells[1, 0.25]
    seen = used(text, tmp_path)
    assert (seen["faults"], seen["title"], seen["wide"]) == ([], "Savings at equal loss", True)
    assert seen["map"] == [[tables.percent(row.claim.mean), True], [f"{row.loss.mean:.4f}", True]]
    assert [said for said, _ in seen["layers"]] == [True] * len(layers.QUANTITIES), "each quantity names its axis"
    assert all(lines > 1 for _, lines in seen["layers"]), "a line a layer"


@browser
def test_under_its_own_policy_the_page_draws_and_says_nothing(recorded: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(recorded[2])
    dom = opened(tmp_path / "index.html", tmp_path / "profile", "--window-size=400,800")
    assert dom.count('class="plot"') == recorded[2].count('<figure class="chart"') > 0
    assert math.isfinite(island(dom)["groups"]["1"]["target"])


# What of the open page is wider than its place, in a frame as wide as a phone; a page of its own reads it.
PHONE = """<script>
document.querySelectorAll("details").forEach((node) => { node.open = true; });
const all = [...document.querySelectorAll(".settings .wide, pre, .switch")];
const cut = all.filter((node) => node.scrollWidth > node.clientWidth);
const said = { width: innerWidth, settings: document.querySelectorAll(".settings .wide").length };
said.cut = cut.map((node) => node.textContent.slice(0, 40));
said.wide = document.documentElement.scrollWidth > innerWidth;
dispatchEvent(new Event("resize"));
const boxes = [...document.querySelectorAll(".wide")].filter((node) => node.scrollWidth > node.clientWidth);
said.scroll = boxes.length;
said.reached = boxes.filter((node) => node.tabIndex === 0 && node.getAttribute("aria-label")).length;
said.stays = boxes.filter((node) => {
  const first = node.querySelector("tbody td"), before = first.getBoundingClientRect().left;
  node.scrollLeft = 60;
  return Math.abs(first.getBoundingClientRect().left - before) < 1 && before + first.offsetWidth < innerWidth / 2;
}).length;
parent.postMessage(JSON.stringify(said), "*");
</script>"""
FRAME = """<iframe src="phone.html" width="400" height="900"></iframe><script>
addEventListener("message", (event) => {
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: event.data }));
});
</script>"""


def on_a_phone(text: str, script: str, folder: Path) -> Any:
    """Return what a script says of the page in a frame as wide as a phone."""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (folder / "phone.html").write_text(free.replace("</body>", script + "</body>"))
    (folder / "index.html").write_text(f"<!doctype html><body>{FRAME}")
    dom = opened(folder / "index.html", folder / "profile")
    return json.loads(html.unescape(re.findall(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[0]))


# Points at the whole first chart, and says how far what is read out there sticks out of the page.
TIPS = """<script>
const svg = document.querySelector("svg.plot"), box = svg.getBoundingClientRect(), said = { read: 0, out: 0 };
const tip = document.querySelector(".tip");
for (let x = 50; x < box.width; x += 9) for (let y = 40; y < box.height; y += 9) {
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y }));
  if (tip.hidden) continue;
  const { left, right } = tip.getBoundingClientRect();
  said.read += 1;
  said.out = Math.max(said.out, right - innerWidth, -left);
}
parent.postMessage(JSON.stringify(said), "*");
</script>"""


@browser
def test_on_a_phone_what_is_read_out_stays_on_the_page(tmp_path: Path) -> None:
    fake.run(tmp_path / "runs/a", "scratch", fake.SCRATCH)
    fake.run(tmp_path / "runs/b", "2level", fake.TWO, cycle={"name": "a_name_without_a_place_to_break_it_" * 2})
    seen = on_a_phone(read(tmp_path / "runs")[2], TIPS, tmp_path)
    assert seen["read"] > 100 and seen["out"] <= 0


@browser
def test_on_a_phone_the_difference_of_settings_is_seen_and_no_line_of_code_is_cut(
    recorded: Any, tmp_path: Path
) -> None:
    seen = on_a_phone(recorded[2], PHONE, tmp_path)
    assert seen["settings"] > 0 and seen["scroll"] > 0
    many = {"scroll": seen["scroll"], "reached": seen["scroll"], "stays": seen["scroll"]}
    assert seen == {"width": 400, "settings": seen["settings"], "cut": [], "wide": False, **many}


def test_what_rules_have_between_backticks_is_code_and_nothing_of_a_user_is_let_through() -> None:
    assert parts.coded("`a<b`: c") == "<code>a&lt;b</code>: c" and parts.coded("one ` alone") == "one ` alone"


ODD = "<script>localStorage.setItem('mlrun-report-theme', '<i>');</script>"


@browser
def test_a_choice_of_colours_outlives_a_page_that_reads_itself_again(recorded: Any, tmp_path: Path) -> None:
    """What the page keeps when a colour is pressed is what it begins with; a value of somebody else's is nothing."""
    assert used(recorded[2], tmp_path)["remembered"] == "none"
    # The same browser, and so what it kept: the last button that was pressed.
    assert used(recorded[2], tmp_path)["remembered"] == "dark"
    assert used(recorded[2].replace("<main>", ODD + "<main>"), tmp_path)["remembered"] == "none"
