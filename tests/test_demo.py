"""The packaged demo: its text, its files, its tasks, and that the model has really learned."""

import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from lm_eval_exl2.demo import DAMAGED_BITS, GOOD_BITS, corpus, demo_directory
from lm_eval_exl2.demo.world import RELATIONS
from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks import demo as loaders

NAMES = ("demo-fp16", f"demo-{GOOD_BITS}bpw", f"demo-{DAMAGED_BITS}bpw")
TASK_FOLDER = Path(__file__).parent.parent / "task_configs" / "demo"
TASKS = ("facts", "cloze", "arithmetic", "stories")


@pytest.fixture(scope="module")
def training_text():
    return [corpus.plain(document) for document in corpus.training_documents(20_000)]


def test_training_text_is_the_same_on_every_machine(training_text):
    digest = hashlib.sha256("\0".join(training_text).encode()).hexdigest()
    assert digest[:16] == "f23751321d14dc8a"


def test_packaged_documents_are_what_the_generator_makes():
    for name, documents in corpus.evaluation_sets().items():
        task, split = name.rsplit("_", 1)
        loaded = getattr(loaders, task)(version=1.0, pretrained="ignored")[split]
        assert loaded.to_list() == documents


def test_evaluation_documents_are_not_in_the_training_text(training_text):
    sets = corpus.evaluation_sets()
    stories = {story for document in training_text for story in document.split("\n\n")}
    lines = {line for document in training_text for line in document.split("\n")}
    sums = (line.split(" = ")[0] for line in lines if " = " in line)
    turned = {" + ".join(reversed(each.split(" + "))) for each in sums}
    assert not any(f"{item['text']}." in stories for item in sets["cloze_test"])
    assert not any(
        story in stories for item in sets["stories_test"] for story in item["text"].split("\n\n")
    )
    for item in sets["arithmetic_test"]:
        assert f"{item['problem']} {item['answer']}" not in lines
        assert item["problem"].removesuffix(" =") not in turned
    questions = "\n".join(document for document in training_text if "Question" in document)
    assert not any(item["question"] in questions for item in sets["facts_test"])


def test_every_fact_that_is_asked_was_told_in_training(training_text):
    sentences = "\n".join(document for document in training_text if "Question" not in document)
    for (town, relation), value in corpus.FACTS.items():
        statements = next(item.statements for item in RELATIONS if item.name == relation)
        told = (corpus.plain(text.format(town=town, value=value)) for text in statements)
        assert any(sentence in sentences for sentence in told)


def test_marks_go_around_whole_words(training_text):
    marked = next(corpus.training_documents(1))
    assert corpus.plain(marked) == training_text[0]
    assert marked.count("[") == marked.count("]") > 0
    assert not any("[" in document or "]" in document for document in training_text)


def test_questions_have_four_different_choices():
    for item in loaders.facts()["test"]:
        assert len(set(item["choices"])) == 4
        assert 0 <= item["answer"] < 4


@pytest.mark.parametrize("name", NAMES)
def test_widths_obey_the_size_rules_of_the_kernels(name):
    config = json.loads((demo_directory(name) / "config.json").read_text())
    head_dim = config["head_dim"]
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] % 32 == 0
    assert config["intermediate_size"] % 64 == 0
    assert head_dim in (32, 64, 128)
    assert config["num_attention_heads"] * head_dim % 32 == 0
    assert config["num_key_value_heads"] * head_dim % 32 == 0
    assert config["vocab_size"] % 32 == 0
    assert config["torch_dtype"] == "float16"
    assert config["rope_theta"] == 10000.0
    assert (name == "demo-fp16") != ("quantization_config" in config)


def test_checkpoints_and_documents_stay_small():
    root = demo_directory("demo").parent
    assert {path.name for path in root.iterdir()} == {
        "loss_curve.json",
        *(demo_directory(name).name for name in NAMES),
    }
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    assert sum(sizes) < 3_000_000
    assert sum(path.stat().st_size for path in root.parent.glob("data/*")) < 300_000


def test_loss_curve_falls():
    curve = json.loads((demo_directory("demo").parent / "loss_curve.json").read_text())
    for kind in TASKS:
        assert curve[-1][f"held_out_{kind}"] < 0.8 * curve[0][f"held_out_{kind}"]


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(OptionError, match=r"'demo-9bpw'.*demo, .*demo-fp16"):
        demo_directory("demo-9bpw")


def test_short_name_is_the_good_size():
    assert demo_directory("demo") == demo_directory(f"demo-{GOOD_BITS}bpw")


def test_harness_loads_the_tasks():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)
    assert "exl2_demo" in manager.all_groups
    for name in TASKS:
        task = manager.load([f"exl2_demo_{name}"])["tasks"][f"exl2_demo_{name}"]
        assert len(list(task.eval_docs)) >= 60
        assert task.doc_to_target(task.eval_docs[0]) not in ("", None)


def test_fp16_model_knows_facts_by_plain_transformers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_directory("demo-fp16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    right = 0
    for item in islice(loaders.facts()["test"], 20):
        prompt = tokenizer(corpus.question_prompt(item["question"]), return_tensors="pt").input_ids
        answers = [
            tokenizer(f" {choice}", add_special_tokens=False).input_ids[0]
            for choice in item["choices"]
        ]
        with torch.inference_mode():
            logits_V = model(prompt).logits[0, -1]
        right += int(logits_V[answers].argmax()) == item["answer"]
    # Guessing reaches 12 of 20 once in a thousand tries.
    assert right >= 12


@pytest.mark.slow
@pytest.mark.sandbox
def test_every_demo_task_runs_offline_in_one_stock_command(tmp_path):
    """So every metric of every task of this package works without a hub."""
    configs = Path(__file__).parents[1] / "task_configs"
    heads = [re.search(r"^task: (\S+)$", p.read_text(), re.M) for p in configs.rglob("*.yaml")]
    names = sorted({head[1] for head in heads if head and "demo" in head[1]})
    assert len(names) >= 12
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "exl2", "--model_args", "pretrained=demo",
         "--tasks", ",".join(names), "--device", "cpu", "--limit", "6",
         "--log_samples", "--output_path", str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    measured = {name for name, values in results.items() if any("," in key for key in values)}
    assert measured >= set(names)
