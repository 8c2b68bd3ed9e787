"""`mlrun --help GROUP`: every choice and key, with what the YAML files say of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlrun.__main__ import main
from mlrun.cli import command, explain, points
from mlrun.config.load import conf_dir
from mlrun.config.settings import GROUPS
from mlrun.errors import UserError


def shown(*words: str) -> str:
    """Return what the help says, each row on one line."""
    return re.sub(r"\n {6,}", " ", explain.text(command.read(["--help", *words])))


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def test_a_group_has_its_choices_and_each_key_of_the_chosen_one() -> None:
    text = shown("optimizer", "optimizer=adamw_bert", "optimizer.lr=3e-4")
    assert text.startswith("optimizer: How gradients move the weights")
    for file in (conf_dir() / "optimizer").glob("*.yaml"):
        assert re.search(rf"  optimizer={file.stem} +\w", text), file
    assert re.search(r"  optimizer.lr=0.0003 +peak learning rate at level 1\n", text)
    assert re.search(r"  optimizer.schedule.floor=0.0 +where the rate ends", text)
    assert "_target_" not in text


@pytest.mark.parametrize(
    "words",
    [("model", f"model={family}_tiny") for family in ("gpt", "bert", "deit", "llama", "t5")]
    + [("cycle",), ("cycle", "cycle=auto"), ("coarsening",), ("growth", "growth=ligo"), ("hardware",), ("settings",)]
    + [("data",), ("data", "data=digits", "model=deit_digits"), ("evaluation", "evaluation=[glue,transfer]")]
    + [("logger", "logger=wandb"), ("optimizer", "optimizer=muon"), ("growth", "growth=fresh")],
    ids=" ".join,
)
def test_every_key_is_explained(words: tuple[str, ...]) -> None:
    subject, *chosen = words
    with points.hydra_loader() as loader:
        rows = explain.Files(loader, chosen).rows(subject)
    pairs = ("beta2", "entity", "tags", "std")  # which what stands above the first of a pair explains
    untold = [key.partition("=")[0] for key, comment in rows if not comment]
    elsewhere = "evaluation.transfer.data."  # whose own comment says where: keys as in conf/data
    assert len(rows) > 1
    assert not [key for key in untold if key.rpartition(".")[2] not in pairs and not key.startswith(elsewhere)]


def test_a_key_that_another_file_of_the_group_explains_is_explained() -> None:
    text = shown("scale", "scale=bert")
    assert re.search(r"  scale.rates.ablations=0.0001 +variants of the V-cycle", text)
    assert re.search(r"  scale.alpha=0.5 +cycle.alpha of a grid", text)


def test_every_key_of_a_job_in_the_page_on_clusters_is_explained() -> None:
    page = (conf_dir().parent / "docs" / "cluster.md").read_text()
    table = page.partition("| key below `hydra.launcher.` |")[2].partition("\n\n")[0]
    keys = [key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split(" | ")[0])]
    with points.hydra_loader() as loader:
        said = dict(explain.Files(loader, ["hydra/launcher=slurm"]).rows("hydra/launcher"))
    told = {key.partition("=")[0].rpartition(".")[2] for key, comment in said.items() if comment}
    told |= {key.removeprefix("hydra.launcher.").rstrip(":") for key, comment in said.items() if comment}
    assert len(keys) > 10 and set(keys) <= told


def test_what_a_file_says_first_is_of_the_file_and_not_of_its_first_key() -> None:
    assert re.search(r"cycle.name=2level +What it is called", shown("cycle"))
    assert re.search(r"data.sequence=128 +Tokens per sample", shown("data"))
    assert "explained once" not in shown("cycle") + shown("data")


def test_what_is_said_of_a_choice_is_a_whole_sentence() -> None:
    with points.hydra_loader() as loader:
        files = explain.Files(loader, [])
        groups = (*GROUPS, "method", "scale", "experiment")
        said = {f"{group}={name}": text for group in groups for name, text in files.choices(group).items()}
    assert len(said) > 100
    assert [choice for choice, text in said.items() if not text or text.endswith((":", ","))] == []


def test_commands_in_a_comment_have_lines_of_their_own() -> None:
    text = explain.text(command.read(["--help", "data"]))
    assert re.search(r"  data=text +Your own text files\.\n +mlrun data=text 'data\.files", text)
    hardware = explain.text(command.read(["--help", "hardware"]))
    slurm = hardware.partition("hardware=slurm ")[2].partition("hardware=slurm_cpu")[0]
    assert re.search(r"\n +mlrun -m hardware=slurm", slurm) and "More for each run" not in slurm


def test_the_file_that_explains_wins_over_one_that_is_about_a_value() -> None:
    text = shown("optimizer.schedule.warmup", "scale=tiny")
    assert "20%" in text and "rises from 0" in text and "plateau" not in text


def test_a_choice_without_a_place_of_its_own_shows_what_it_sets() -> None:
    text = shown("method", "method=vcycle")
    assert "What method=vcycle sets:" in text and re.search(r"cycle.alpha=0.25 +Share of what comes up", text)
    assert "What method" not in shown("method"), "nothing is chosen"


def test_keys_and_parts_may_be_named_alone() -> None:
    assert shown("seed").splitlines() == ["  seed=0  Starts the weights, the order of the data and dropout."]
    assert [line.split("=")[0].strip() for line in shown("eval").splitlines()] == ["eval.every", "eval.batch"]
    assert "array_parallelism=64" in shown("hydra.launcher", "hardware=slurm")
    assert shown("seed", "checkpoint").count("\n\n") == 1


def test_the_rows_of_stages_leave_out_the_columns_that_are_not_given() -> None:
    text = shown("cycle", "cycle=auto")
    assert "cycle.stages=[{level: 2, length: auto}, {level: 1, length: rest}]" in text


def test_files_of_the_user_are_explained_too() -> None:
    Path("conf/cycle").mkdir(parents=True)
    Path("conf/cycle/mine.yaml").write_text(
        "# My own rows. Tried twice.\nname: mine\nstages:\n- {level: 1, length: rest}\n"
    )
    Path("conf/cycle/broken.yaml").write_bytes(b"# Not \xff chosen.\na: [")
    text = shown("cycle", "cycle=mine")
    assert re.search(r"  cycle=mine +My own rows\.\n", text) and "What cycle=mine sets:" in text


@pytest.mark.parametrize("word", ["optimzer", "model.nope", "seed.x", "model/nope", "nope"])
def test_a_word_that_is_none_is_one_line(word: str) -> None:
    with pytest.raises(UserError) as refused:
        explain.text(command.read(["--help", word]))
    assert len(refused.value.problems) == 1 and f"--help {word}: allowed: a group or key" in str(refused.value)


def test_a_wrong_choice_beside_it_is_one_line() -> None:
    with pytest.raises(UserError, match="model=nope: allowed: bert_base"):
        explain.text(command.read(["--help", "model", "model=nope"]))


def test_the_command_prints_it_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mlrun", "--help", "growth"])
    main()
    assert capsys.readouterr().out.startswith("growth: How a model goes up")
    monkeypatch.setattr("sys.argv", ["mlrun", "--help", "grwth"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and not list(Path.cwd().iterdir())
