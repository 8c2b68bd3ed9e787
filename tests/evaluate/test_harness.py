"""lm-eval on our network says what it says of the same folder by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hf_folders import TEXT
from test_own_data import measured

from mlrun.evaluate.harness import Harness

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'mlrun[eval]'")
pytest.importorskip("accelerate", reason="by hand lm-eval needs accelerate")
pytest.importorskip("transformers", reason="the reference is not installed")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two tasks: questions with choices, and texts to be read."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"The {who} near the trees", "c": ["is old", "are old"], "right": n % 2, "text": TEXT * (n + 1)}
            for n, who in enumerate(("king", "kings", "woman", "women", "boy"))]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 2.0},
    }
    choice = {"task": "local_choice", "output_type": "multiple_choice", "doc_to_text": "{{q}}",
              "doc_to_choice": "{{c}}", "doc_to_target": "right", "metric_list": [{"metric": "acc"}]}  # fmt: skip
    per_word_and_byte = [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]
    read = {"task": "local_text", "output_type": "loglikelihood_rolling", "doc_to_text": "",
            "doc_to_target": "{{text}}", "metric_list": per_word_and_byte}  # fmt: skip
    write = {"task": "local_writing", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{c}}",
             "metric_list": [{"metric": "exact_match"}]}  # fmt: skip
    for task in (choice, read, write):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task | common))  # JSON is YAML
    return folder


def test_its_numbers_are_those_of_lm_eval_by_hand(gpt: Path, tasks: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(gpt / "tokenizer.json"), eos_token="<|endoftext|>")
    by_hand = HFLM(AutoModelForCausalLM.from_pretrained(gpt), tokenizer=tokenizer, batch_size=1)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected = simple_evaluate(by_hand, tasks=["local_choice", "local_text"], task_manager=manager)["results"]
    random.seed(7)
    state = random.getstate()
    harness = Harness(["local_choice", "local_text"], include=str(tasks))
    assert harness.problems() == []
    found = measured(gpt, harness)
    assert random.getstate() == state
    assert {task: one.value for task, one in found.items()} == {
        "harness/local_choice/acc": expected["local_choice"]["acc,none"],
        "harness/local_text/word_perplexity": pytest.approx(expected["local_text"]["word_perplexity,none"], rel=1e-4),
        "harness/local_text/bits_per_byte": pytest.approx(expected["local_text"]["bits_per_byte,none"], rel=1e-4),
    }
    accuracy = found["harness/local_choice/acc"]
    assert accuracy.stderr == pytest.approx(expected["local_choice"]["acc_stderr,none"])
    assert (accuracy.metric, accuracy.n, accuracy.version) == ("acc", 5, 2.0)


def test_a_task_that_is_absent_or_writes_is_one_line_before_any_work(tasks: Path) -> None:
    (line,) = Harness(["local_writing"], include=str(tasks)).problems()
    assert line.startswith("evaluation.harness.tasks=local_writing: allowed: tasks that score given texts")
    (line,) = Harness(["local_choice"], include="nowhere").problems()
    assert line.startswith("evaluation.harness.include=nowhere: allowed: a folder")
    assert Harness([]).problems()[0].startswith("evaluation.harness.tasks=[]: allowed: one or more names")
