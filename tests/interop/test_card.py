"""Claims about the model card: the hub's library reads it, and every number in it is one that the run's files say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_runs import RECORDED
from omegaconf import OmegaConf
from safetensors.torch import save_file

from mlrun.cli import command, points, preflight
from mlrun.config.choices import build
from mlrun.convert import coalesce_folder
from mlrun.errors import UserError
from mlrun.interop import ledger, published, told
from mlrun.interop.folders import export_hf, import_hf
from mlrun.models.network import build as network
from mlrun.multilevel.coarsening.uniform import Uniform

hub = pytest.importorskip("huggingface_hub")
transformers = pytest.importorskip("transformers")

RESULTS = {"held_out": {"metric": "loss", "value": 4.1877946853637695, "stderr": 0.038, "n": 16, "version": 1}}
SPENT = ledger.Training("a", "run", 422510592, 260308992, 0.99, 3456, "a machine")


def a_run(folder: Path, name: str = "2level", results: Any = RESULTS) -> Path:
    """Write a recorded run with a model of its sizes, and with results where its trunk ended."""
    shutil.copytree(RECORDED / name, folder)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "val" and "branch" not in record][-1]
    last |= {} if results is None else {"results": results}
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = yaml.safe_load((folder / "config.yaml").read_text())["model"]
    net = network(build(OmegaConf.create(settings), "model"), 0)
    (folder / "model").mkdir()
    save_file({key: tensor.contiguous() for key, tensor in net.state_dict().items()},
              folder / "model" / "model.safetensors")  # fmt: skip
    (folder / "model" / "config.json").write_text(json.dumps(settings))
    published.write(folder / "model", {"bos_token_id": 0, "eos_token_id": 0})
    ledger.write(folder / "model", (SPENT,))
    return folder


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def card(target: Path) -> Any:
    return hub.ModelCard.load(target / "README.md")


def exported(run: Path, target: Path) -> Any:
    export_hf(run, target)
    return card(target)


def test_the_hub_reads_the_front_matter_with_its_results(tmp_path: Path) -> None:
    found = exported(a_run(tmp_path / "run"), tmp_path / "hf")
    data = found.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "text-generation", "other")
    assert data.tags == ["mlrun", "multi-level"] and data.to_dict()["license_name"] == "public-domain-data"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("loss", 4.1877946853637695, "held_out")


def test_what_it_says_is_what_the_files_say(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    plan, summary = (json.loads((run / f"{name}.json").read_text()) for name in ("plan", "summary"))
    text = exported(run, tmp_path / "hf").text
    for stage in plan["stages"]:
        assert f"| {stage['steps']} | {stage['tokens']} | {stage['flops']} |" in text
    assert f"tokens read: {plan['totals']['tokens']}" in text and f"content: `{plan['data']['content']}`" in text
    assert f"epochs: {216 / 473447:.3g}" in text and "licence of the data: public domain" in text
    receipt = summary["receipts"][1]
    assert f"{receipt['loss_before']:.6g} | {receipt['loss_after']:.6g}" in text
    assert "740bbe5c80ac6ed969130e4f50aaa586b16b126c" in text and "| held_out | loss | 4.18779 | 0.038 | 16 |" in text
    assert "decoalesced with alpha 0.5 to level 1 for 32 steps" in text and told.NOT_COMPARED in text
    edited(run / "summary.json", receipts=[receipt | {"loss_after": 9.75}], machine="an abacus")
    edited(run / "plan.json", data=plan["data"] | {"content": "other", "samples": 108})
    again = exported(run, tmp_path / "again").text
    assert " 9.75 |" in again and "machine: an abacus" in again and "epochs: 2\n" in again and "`other`" in again


def test_everything_that_led_to_the_weights_is_charged_and_unknown_stays_unknown(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    ledger.write(run / "model", (ledger.Training("b", "theirs", 10**9), SPENT))
    text = exported(run, tmp_path / "hf").text
    assert "| theirs | 1e+09 | unknown | unknown | unknown |" in text and "they are charged" in text
    assert f"| all | {10**9 + SPENT.flops:.6g} | unknown |" in text  # type: ignore[operator]


def test_the_licence_of_a_users_own_data_is_what_the_user_says(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = {"_target_": "mlrun.data.text.files.Files", "files": ["/home/me/secret/book.txt"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = exported(run, tmp_path / "hf")
    assert found.data.license == "unknown" and "licence of the data: unknown" in found.text
    assert "book.txt" in found.text and "secret" not in found.text
    export_hf(run, tmp_path / "said", "cc-by-4.0")
    said = card(tmp_path / "said")
    assert said.data.license == "cc-by-4.0" and "licence of the data: cc-by-4.0" in said.text


def test_a_licence_that_says_nothing_or_contradicts_the_data_is_one_line(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"data_licence=mit: allowed: null; the data says it is public domain"):
        export_hf(run, tmp_path / "hf", "mit")
    (run / "log.jsonl").unlink()
    with pytest.raises(UserError, match="no run beside the weights"):
        export_hf(run, tmp_path / "hf", "mit")
    mine = told.Told({"data": {"_target_": "mlrun.data.text.files.Files"}}, {"stages": []}, {}, {}, {}, "")
    with pytest.raises(UserError, match=r"data_licence=my own: allowed: an id of the hub, such as cc-by-4.0"):
        told.declare(mine, "my own")
    assert not (tmp_path / "hf").exists()
    with pytest.raises(UserError, match="task=train does not read it, task=export would"):
        preflight.check(points.of(command.read(["data_licence=mit", f"run={tmp_path}/new"])))


def test_data_sets_of_the_hub_are_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    here = str(tmp_path)
    config["data"] = {"_target_": "mlrun.data.text.hub.Hub", "sources": [{"path": "org/set"}, {"path": here}]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert exported(run, tmp_path / "hf").data.datasets == ["org/set"]
    assert here not in (tmp_path / "hf" / "README.md").read_text()


def a_report(run: Path, **changes: Any) -> None:
    """Write beside the runs what a report has of this one."""
    summary = json.loads((run / "summary.json").read_text())
    mine = {"run": f"runs/{run.name}", "seed": 0, "val_loss": summary["val_loss"], "status": "finished"} | changes
    row = {"method": "2level", "best": True, "seeds": [{"run": mine["run"]}]}
    group = {"runs": [mine], "baseline": {"runs": {}}, "methods": [row], "summary": ["2level saves 12.5%."]}
    (run.parent / "report").mkdir(exist_ok=True)
    (run.parent / "report" / "report.json").write_text(json.dumps({"groups": [group]}))


def test_the_saving_is_the_reports_own_sentence_and_only_of_this_very_run(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    a_report(run)
    assert "as the report says it: 2level saves 12.5%." in exported(run, tmp_path / "hf").text
    path = run.parent / "report" / "report.json"
    found = json.loads(path.read_text())
    found["groups"][0]["summary"].append(f"{told.SMALLER}(9k parameters) does as well.")
    path.write_text(json.dumps(found))
    assert (
        "2level saves 12.5%. A smaller model alone (9k parameters) does as well." in exported(run, tmp_path / "c").text
    )
    a_report(run, val_loss=4.0)  # trained anew since
    assert told.NOT_COMPARED in exported(run, tmp_path / "again").text


def test_later_evaluations_are_added_unless_they_are_of_another_model(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    pairs = {"pairs": RESULTS["held_out"] | {"metric": "accuracy", "value": 0.75}}
    (run / "evaluate.json").write_text(json.dumps(RESULTS | pairs))
    assert "| pairs | accuracy | 0.75 |" in exported(run, tmp_path / "hf").text
    (run / "evaluate.json").write_text(json.dumps({"held_out": RESULTS["held_out"] | {"value": 2.0}} | pairs))
    assert "| pairs |" not in exported(run, tmp_path / "again").text


def test_an_unmeasured_run_has_no_results(tmp_path: Path) -> None:
    found = exported(a_run(tmp_path / "run", results=None), tmp_path / "hf")
    assert found.data.eval_results is None and "Results: unknown" in found.text


def test_branches_are_told_beside_the_weights(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "2level-branch")
    plan = json.loads((run / "plan.json").read_text())
    text = exported(run, tmp_path / "hf").text
    branch = next(stage for stage in plan["stages"] if "branch" in stage)
    assert "Branches of this run spent" in text and f"| {branch['flops']} |" not in text


def test_operators_and_imports_carry_no_card_of_another_model(tmp_path: Path) -> None:
    export_hf(a_run(tmp_path / "run"), tmp_path / "hf")
    coalesce_folder(tmp_path / "hf", tmp_path / "coarse", Uniform(width=2, ffn=2, head=2, depth=2))
    found = card(tmp_path / "coarse")
    assert "embed 16" in found.text and "No run folder was beside these weights" in found.text
    assert found.data.license == "unknown" and found.data.eval_results is None
    import_hf(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours" / "model" / "README.md").exists()


def test_generation_is_configured_as_transformers_does_it(tmp_path: Path) -> None:
    export_hf(a_run(tmp_path / "run"), tmp_path / "hf")
    ours = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    theirs = transformers.GenerationConfig.from_model_config(config)
    said = ours.to_diff_dict()
    assert {key: theirs.to_diff_dict().get(key) for key in said} == said, "nothing that it would not say"
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (0, 0, theirs.pad_token_id)


def test_the_card_loads_the_model_as_it_says(tmp_path: Path) -> None:
    text = exported(a_run(tmp_path / "run"), tmp_path / "hf").text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(tmp_path / "hf")), names)
    assert names["model"].config.vocab_size == 300


def test_a_damaged_run_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "plan.json").write_text("[")
    with pytest.raises(UserError, match=r"plan\.json"):
        export_hf(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("trained_on", [True, False])
def test_weights_of_unknown_cost_are_named_and_nothing_is_summed(trained_on: bool, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    foreign = tmp_path / "someones-gpt"
    foreign.mkdir()
    save_file({"x": torch.ones(2)}, foreign / "model.safetensors")
    (unknown,) = ledger.read(foreign)
    assert unknown.flops is None
    both = (unknown, SPENT) if trained_on else (unknown,)
    ledger.write(run / "model", both)
    cost = exported(run, tmp_path / "hf").text.partition("## Cost")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in cost.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    named = {row[0]: row[1:] for row in rows}
    assert named["someones-gpt"][:4] == ["unknown"] * 4
    assert named["all"] == ["unknown"] * 4 and "they are charged" not in cost
    assert "What someones-gpt cost is unknown: no ledger.json lay beside it" in cost
    if trained_on:
        assert named["run"][0] == "4.22511e+08" and "are what it started from" in cost
