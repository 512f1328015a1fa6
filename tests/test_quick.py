"""Quick tasks through the harness: the full run's documents, prompts and examples, only fewer."""

from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_exl2.errors import OptionError, RequestError
from lm_eval_exl2.tasks.demo import subjects
from lm_eval_exl2.tasks.quick import screening, slices
from lm_eval_exl2.tasks.quick.task import PlacedDocument

TASKS = Path(__file__).parents[1] / "task_configs"
STOCK = Path(lm_eval.tasks.__file__).parent
QUICK = sorted((TASKS / "quick").glob("exl2_quick_*.yaml"))

# The three ways in which a stock task gets its examples.
WAYS = {
    # ARC, GSM8K: from `train`, the document plays no part.
    "from_train": "training_split: train\ntest_split: test\n",
    # HellaSwag, WinoGrande: from `train`, and the document is kept out although it is not in it.
    "keeping_out": "training_split: train\nvalidation_split: test\n",
    # From the documents themselves.
    "from_test": "test_split: test\nfewshot_split: test\n",
}
DATA = """
from datasets import Dataset
def load(**_):
    rows = [{"text": f"number {n}", "label": n % 3, "names": ["a", "b", "c"]} for n in range(40)]
    # Copies: examples that equal the document are dropped, and too few make the sampler draw again.
    return {"test": Dataset.from_list(rows), "train": Dataset.from_list(rows[5:9] * 3 + rows[:7])}
"""
SHAPE = """
custom_dataset: !function data.load
output_type: multiple_choice
doc_to_text: "{{text}} is"
doc_to_target: label
doc_to_choice: names
num_fewshot: 3
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 7.0}
"""


class Fake(LM):
    """A model that likes some answers better than others, always the same ones."""

    tokenizer_name = "fake"

    def loglikelihood(self, requests):
        return [(-float(sum(map(ord, "".join(each.args))) % 97), False) for each in requests]

    def generate_until(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = generate_until

    def apply_chat_template(self, messages, add_generation_prompt=True):
        return "".join(f"<{each['role']}>{each['content']}" for each in messages)

    def chat_template(self, _=False):
        return "fake"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Full tasks that draw examples in each way, and a quick task over 12 documents of each."""
    (tmp_path / "data.py").write_text(DATA)
    for way, splits in WAYS.items():
        full = tmp_path / f"{way}.yaml"
        full.write_text(f"task: {way}\n{splits}{SHAPE}")
        (tmp_path / f"quick_{way}.yaml").write_text(
            f"task: quick_{way}\n"
            "class: !function lm_eval_exl2.tasks.quick.task.QuickTask\n"
            f"metadata: {{version: 1.0, full: {full}, slice: forty}}\n"
        )
    forty = slices.draw("forty", {"test": 40}, 12)
    monkeypatch.setattr(slices, "committed", lambda: {"forty": forty})
    return tmp_path


def run(task, folder=TASKS, **arguments):
    manager = TaskManager(include_path=[str(folder)], include_defaults=False)
    return lm_eval.simple_evaluate(
        Fake(), tasks=[task], task_manager=manager, bootstrap_iters=0, **arguments
    )


def samples(task, folder=TASKS, **arguments):
    return run(task, folder, **arguments)["samples"][task]


def identity(sample):
    hashes = (sample["doc_hash"], sample["prompt_hash"], sample["target_hash"])
    return (sample["doc_id"], *hashes, sample["acc"], repr(sample["arguments"]))


@pytest.mark.parametrize("way", WAYS)
def test_random_examples_are_those_that_the_full_run_draws(folder, way):
    full = {each["doc_id"]: identity(each) for each in samples(way, folder)}
    found = [identity(each) for each in samples(f"quick_{way}", folder)]
    assert len(found) == 12
    assert found == [full[place] for place in slices.find("forty").places]
    # And they are random: another seed gives other prompts.
    other = samples(f"quick_{way}", folder, fewshot_random_seed=5)
    assert [each["prompt_hash"] for each in other] != [each[2] for each in found]


@pytest.mark.parametrize("arguments", [
    {"num_fewshot": 1},
    {"fewshot_random_seed": 99},
    {"apply_chat_template": True, "fewshot_as_multiturn": True},
    {"apply_chat_template": True, "fewshot_as_multiturn": False, "system_instruction": "Be brief."},
])  # fmt: skip
def test_options_change_a_quick_run_as_they_change_the_full_run(folder, arguments):
    full = {each["doc_id"]: identity(each) for each in samples("keeping_out", folder, **arguments)}
    found = [identity(each) for each in samples("quick_keeping_out", folder, **arguments)]
    assert found == [full[place] for place in slices.find("forty").places]


def test_limit_takes_the_first_of_the_slice(folder):
    whole = [identity(each) for each in samples("quick_from_train", folder)]
    results = run("quick_from_train", folder, limit=5)
    assert [identity(each) for each in results["samples"]["quick_from_train"]] == whole[:5]
    metadata = results["configs"]["quick_from_train"]["metadata"]
    assert metadata["screening"].startswith("5 documents")
    assert results["n-samples"]["quick_from_train"] == {"original": 12, "effective": 5}


def test_every_process_of_a_run_asks_what_one_process_would(folder):
    manager = TaskManager(include_path=[str(folder)], include_defaults=False)
    whole = {each["doc_id"]: each["prompt_hash"] for each in samples("from_train", folder)}
    asked = {}
    for rank in range(3):
        task = manager.load(["quick_from_train"])["tasks"]["quick_from_train"]
        task.set_fewshot_seed(7)  # what was drawn with another seed is forgotten
        task.build_all_requests()
        task.set_fewshot_seed(1234)
        task.build_all_requests(rank=rank, world_size=3)
        asked |= {each.doc_id: each.arguments[0] for each in task.instances}
    hashed = {place: lm_eval.utils.hash_string(prompt) for place, prompt in asked.items()}
    assert hashed == {place: whole[place] for place in slices.find("forty").places}


def test_the_bound_stands_in_table_results_and_log(folder, caplog):
    results = run("quick_from_train", folder)
    metadata = results["configs"]["quick_from_train"]["metadata"]
    assert metadata["screening"] in caplog.text
    assert caplog.text.count("it never says ship") == 1
    assert metadata["can_rule_out_a_drop_of"]["at_best"] == pytest.approx(1 - 0.05 ** (1 / 12))
    assert metadata["full_version"] == 7.0
    assert metadata["documents_of_full"] == 40
    assert "drop of 22.1 % at best" in results["results"]["quick_from_train"]["alias"]


def test_predictions_without_scores_say_nothing_about_drops(folder, caplog):
    found = run("quick_from_train", folder, predict_only=True)
    assert len(found["samples"]["quick_from_train"]) == 12
    assert "rule out" not in caplog.text


def test_documents_chosen_by_hand_are_refused(folder):
    with pytest.raises(RequestError, match="use --limit N"):
        run("quick_from_train", folder, samples={"quick_from_train": [0, 3]})


def test_data_of_another_size_is_refused(folder, monkeypatch):
    drawn = slices.draw("forty", {"test": 41}, 12)
    monkeypatch.setattr(slices, "committed", lambda: {"forty": drawn})
    with pytest.raises(OptionError, match=r"test has 40 documents, .* drawn for 41"):
        run("quick_from_train", folder)


def test_a_harness_without_the_stock_task_is_told_so(folder):
    path = folder / "quick_from_train.yaml"
    path.write_text(path.read_text().replace("from_train.yaml", "gone.yaml"))
    with pytest.raises(OptionError, match=r"no task file .*gone.yaml"):
        run("quick_from_train", folder)


def test_a_placed_document_is_the_same_json():
    assert PlacedDocument({"a": 1}, 5) == {"a": 1}
    assert PlacedDocument({"a": 1}, 5).place == 5


def test_the_demo_is_a_part_of_the_full_demo_task():
    full = {each["doc_id"]: identity(each) for each in samples("exl2_demo_facts")}
    found = [identity(each) for each in samples("exl2_quick_demo_facts")]
    assert found == [full[place] for place in slices.find("demo_facts").places]
    assert len(found) == 60


def test_subjects_in_one_task_ask_what_a_task_per_subject_asks(tmp_path):
    expected = []
    for subject, size in slices.find("demo_subjects").sizes.items():
        (tmp_path / f"{subject}.yaml").write_text(
            f"include: {STOCK}/mmlu/default/_default_template_yaml\n"
            f"task: {subject}\ndataset_path: null\nnum_fewshot: 2\n"
            "custom_dataset: !function lm_eval_exl2.tasks.demo.subjects\n"
            'description: "The following are multiple choice questions (with answers) about '
            f'{subject}.\\n\\n"\n'
            f"metadata: {{subject: {subject}}}\n"
        )
        found = samples(subject, tmp_path)
        assert len(found) == size
        expected += [identity(each)[1:] for each in found]
    results = run("exl2_quick_demo_subjects")
    found = results["samples"]["exl2_quick_demo_subjects"]
    places = slices.find("demo_subjects").places
    assert [each["doc_id"] for each in found] == places
    assert [identity(each)[1:] for each in found] == [expected[place] for place in places]
    assert "subject" not in results["configs"]["exl2_quick_demo_subjects"]["metadata"]


def test_documents_of_another_subject_are_refused(monkeypatch):
    def mixed(subject, **_):
        other = {"rivers": "rivers", "markets": "rivers", "bridges": "bridges"}[subject]
        splits = subjects(other)
        return splits | {"test": splits["test"].select(range(len(subjects(subject)["test"])))}

    monkeypatch.setattr("lm_eval_exl2.tasks.demo.subjects", mixed)
    with pytest.raises(OptionError, match="documents of markets say they are about rivers"):
        run("exl2_quick_demo_subjects")


@pytest.mark.parametrize("path", QUICK, ids=lambda path: path.stem)
def test_every_quick_task_changes_only_its_name_its_shots_and_its_documents(path):
    own = load_yaml(path)
    assert own["task"] == path.stem
    assert own["metadata"]["slice"] in slices.committed()
    full = own["metadata"]["full"]
    assert (STOCK / full).is_file() or (TASKS / full).is_file()
    allowed = {"task", "class", "num_fewshot", "metadata", "description", "custom_dataset"}
    assert set(own) - allowed <= ({"dataset_path"} if "demo" in path.stem else set())


def test_mmlus_subjects_and_descriptions_are_the_stock_tasks():
    template = load_yaml(TASKS / "quick" / "exl2_quick_mmlu.yaml")["description"]
    stock = {}
    for path in (STOCK / "mmlu/default").glob("mmlu_*.yaml"):
        config = load_yaml(path, recursive=False)
        stock[config["dataset_name"]] = config["description"]
        assert config["include"] == "_default_template_yaml"
    assert set(stock) == set(slices.find("mmlu").sizes)
    for subject, description in stock.items():
        assert lm_eval.utils.apply_template(template, {"subject": subject}) == description


def test_the_readme_has_the_numbers_of_every_task():
    text = (TASKS / "quick" / "README.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    documents = whole = 0
    for name, row in rows.items():
        config = load_yaml(TASKS / "quick" / f"{name}.yaml")
        chosen = slices.find(config["metadata"]["slice"])
        documents += len(chosen.places)
        whole += sum(chosen.sizes.values())
        assert f"| {len(chosen.places)} of {sum(chosen.sizes.values()):,} |" in row
        assert f"| {config['num_fewshot']} |" in row
        bounds = screening.reach(len(chosen.places), graded=config["metadata"].get("graded", False))
        cells = [screening.per_cent(bound) if bound else "-" for bound in bounds]
        assert row.endswith(f"| {' | '.join(cells)} |")
    assert len(rows) == 6
    assert f"{documents:,} of {whole:,} documents, {100 * documents / whole:.1f} %" in text


def test_the_groups_name_every_quick_task():
    manager = TaskManager(include_path=[str(TASKS)], include_defaults=False)
    grouped = {
        task
        for group in ("exl2_quick", "exl2_quick_demo")
        for task in load_yaml(TASKS / "quick" / f"_{group}.yaml")["task"]
    }
    assert grouped == {path.stem for path in QUICK}
    assert {"exl2_quick", "exl2_quick_demo"} <= set(manager.all_groups)
