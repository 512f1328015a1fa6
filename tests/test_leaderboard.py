"""The first leaderboard's tasks, examples and average; the published error of tinyBenchmarks."""

import math
from functools import cache
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_exl2.errors import RequestError
from lm_eval_exl2.tasks.quick.leaderboard import LEADERBOARD_V1, QUICK, average
from lm_eval_exl2.tasks.quick.tiny_benchmarks import beside, published_errors

TASKS = Path(__file__).parents[1] / "task_configs"
STOCK = Path(lm_eval.tasks.__file__).parent
# Hugging Face's "About" page of the leaderboard, 2023.
SHOTS = {
    "arc_challenge": 25,
    "hellaswag": 10,
    "mmlu": 5,
    "truthfulqa_mc2": 0,
    "winogrande": 5,
    "gsm8k": 5,
}
CHOICES = {"text": ["x", "y"], "label": ["A", "B"]}
# Rows with the fields of each data set, enough of them for the examples.
ROWS = {
    "allenai/ai2_arc": {"question": "q?", "choices": CHOICES, "answerKey": "A"},
    "Rowan/hellaswag": {
        "ctx_a": "a",
        "ctx_b": "b",
        "activity_label": "l",
        "endings": ["x", "y"],
        "label": "0",
    },
    "cais/mmlu": {"question": "q", "subject": "s", "choices": ["w", "x", "y", "z"], "answer": 0},
    "truthfulqa/truthful_qa": {
        "question": "q",
        "mc1_targets": {"choices": ["x"], "labels": [1]},
        "mc2_targets": {"choices": ["x", "y"], "labels": [1, 0]},
    },
    "allenai/winogrande": {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"},
    "openai/gsm8k": {"question": "q", "answer": "#### 1"},
}


@pytest.fixture
def no_downloads(monkeypatch):
    import datasets

    @cache
    def make(path):
        splits = ("train", "validation", "test", "dev")
        rows = [{**ROWS[path], "question": f"{number}?"} for number in range(30)]
        return {split: datasets.Dataset.from_list(rows) for split in splits}

    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: make(path))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_the_group_gives_stock_tasks_the_leaderboards_numbers_of_examples(no_downloads):
    folders = ("arc", "hellaswag", "mmlu/default", "truthfulqa", "winogrande", "gsm8k")
    paths = [TASKS / "leaderboard", *(STOCK / folder for folder in folders)]
    manager = TaskManager(include_path=[*map(str, paths)], include_defaults=False)
    loaded = manager.load(["exl2_leaderboard_v1"])
    shots = {name: task.config.num_fewshot for name, task in loaded["tasks"].items()}
    subjects = {name: number for name, number in shots.items() if name.startswith("mmlu_")}
    assert len(subjects) == 57
    assert set(subjects.values()) == {5}
    others = {name: number for name, number in shots.items() if name not in subjects}
    assert others == {name: number for name, number in SHOTS.items() if name != "mmlu"}
    assert set(loaded["group_map"]["exl2_leaderboard_v1"]) == set(SHOTS)
    for name, metric in LEADERBOARD_V1.items():
        task = loaded["tasks"].get(name, loaded["tasks"]["mmlu_anatomy"])
        assert metric.split(",")[0] in task.aggregation()


def test_quick_tasks_have_the_same_examples_and_metrics_as_the_leaderboard():
    for name, metric in QUICK.items():
        config = load_yaml(TASKS / "quick" / f"{name}.yaml", resolve_func=False)
        known = name.removeprefix("exl2_quick_").replace("truthfulqa", "truthfulqa_mc2")
        assert config["num_fewshot"] == SHOTS[known]
        assert metric == LEADERBOARD_V1[known]


def test_the_average_is_the_mean_of_six_and_mmlu_the_mean_of_its_subjects():
    results = {
        "arc_challenge": {"acc,none": 0.9, "acc_norm,none": 0.5},
        "hellaswag": {"acc,none": 0.9, "acc_norm,none": 0.8},
        "truthfulqa_mc2": {"acc,none": 0.4},
        "winogrande": {"acc,none": 0.7},
        "gsm8k": {"exact_match,strict-match": 0.3, "exact_match,flexible-extract": 0.9},
        "mmlu": {"acc,none": 0.99},  # weighted by size: not what the leaderboard counted
        "mmlu_stem": {"acc,none": 0.98},
        "mmlu_social_sciences": {"acc,none": 0.98},
        **{f"mmlu_{number}": {"acc,none": 0.25} for number in range(19)},
        **{f"mmlu_{number}": {"acc,none": 0.70} for number in range(19, 57)},
    }
    found = average(results)
    assert found.scores["mmlu"] == pytest.approx(0.55)  # (19 * 0.25 + 38 * 0.70) / 57
    assert found.average == pytest.approx((0.5 + 0.8 + 0.4 + 0.7 + 0.3 + 0.55) / 6)
    del results["mmlu_56"], results["winogrande"]
    with pytest.raises(RequestError, match=r"mmlu \(acc,none\), winogrande \(acc,none\) missing"):
        average(results)


def test_a_published_average_comes_out():
    # The model card of Weyaxi/Dolphin2.1-OpenOrca-7B.
    scores = dict(zip(SHOTS, (0.6391, 0.8426, 0.6266, 0.5384, 0.7822, 0.1994), strict=True))
    results = {name: {LEADERBOARD_V1[name]: score} for name, score in scores.items()}
    results |= {f"mmlu_{number}": results["mmlu"] for number in range(57)}
    assert round(100 * average(results).average, 2) == 60.47


def test_the_quick_average_counts_the_one_mmlu_task():
    results = {name: {metric: 0.1 * place} for place, (name, metric) in enumerate(QUICK.items())}
    assert average(results, QUICK).average == pytest.approx(0.25)


@pytest.mark.slow
def test_the_stock_harness_knows_every_task_of_the_groups():
    manager = TaskManager()
    assert set(SHOTS) <= set(manager.all_tasks)
    assert {"exl2_leaderboard_v1", "exl2_quick", "exl2_quick_demo"} <= set(manager.all_groups)
    assert {"leaderboard", "tinyBenchmarks"} <= set(manager.all_groups)


def test_every_stock_tiny_task_has_its_published_error():
    group = load_yaml(STOCK / "tinyBenchmarks/tinyBenchmarks.yaml", resolve_func=False)
    assert {each["task"] for each in group["task"]} == set(published_errors())
    for path in (STOCK / "tinyBenchmarks").glob("tiny*.yaml"):
        config = load_yaml(path, resolve_func=False)
        if path.stem != "tinyBenchmarks" and config["task"] in published_errors():
            (metric,) = config["metric_list"]
            assert metric["metric"] == published_errors()[config["task"]].metric
            assert "agg_gpirt" in metric["aggregation"]


def test_the_line_beside_an_estimate_names_its_error_and_its_limit():
    line = beside("tinyGSM8k")
    assert "off by 2.0 points on average" in line
    assert "not validated for differences" in line
    assert beside("gsm8k") is None


class Guessing(LM):
    """Prefers longer answers."""

    def loglikelihood(self, requests):
        return [(float(len(each.args[1])), False) for each in requests]

    def generate_until(self, requests):
        return ["#### 1" for _ in requests]

    loglikelihood_rolling = generate_until


@pytest.mark.network
def test_tiny_benchmarks_themselves_give_estimates():
    pytest.importorskip(
        "tinyBenchmarks", reason="pip install git+https://github.com/felipemaiapolo/tinyBenchmarks"
    )
    found = lm_eval.simple_evaluate(Guessing(), tasks=["tinyBenchmarks"], bootstrap_iters=0)
    for task, published in published_errors().items():
        values = [
            value
            for name, value in found["results"][task].items()
            if name.split(",")[0] == published.metric
        ]
        assert values
        assert all(math.isfinite(value) and -0.1 < value < 1.1 for value in values)
        assert found["n-samples"][task]["effective"] == 100
