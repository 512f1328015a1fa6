"""HumanEval and MBPP through the harness: what an answer becomes, and what is reported."""

import ast
from pathlib import Path

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_exl2.errors import OptionError, SandboxError
from lm_eval_exl2.sandbox import Outcome, Verdict
from lm_eval_exl2.sandbox.pool import Measured
from lm_eval_exl2.tasks import programs
from lm_eval_exl2.tasks.humaneval import HumanEval, HumanEvalExllamav2, HumanEvalInstruct
from lm_eval_exl2.tasks.mbpp import FromSecond, make_program

pytestmark = [
    pytest.mark.sandbox,
]


TASKS = Path(__file__).parents[1] / "task_configs"


class Oracle(LM):
    """A model that answers from the document."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.prompts = []

    def generate_until(self, requests):
        self.prompts += [request.args[0] for request in requests]
        return [self.answer(request.doc) for request in requests]

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def manage(*folders, metadata=None):
    """A task manager that knows this package's tasks only: the harness's own take seconds."""
    paths = [str(TASKS), *map(str, folders)]
    return TaskManager(include_path=paths, include_defaults=False, metadata=metadata)


def run(task, answer, *, metadata=None, folders=(), **arguments):
    manager = manage(*folders, metadata=metadata)
    model = Oracle(answer)
    found = lm_eval.simple_evaluate(
        model, tasks=[task], task_manager=manager, bootstrap_iters=10, **arguments
    )
    results = {
        name.removesuffix(",run_programs"): value for name, value in found["results"][task].items()
    }
    return results, found["configs"][task]["metadata"], found["samples"][task], model.prompts


def test_right_and_wrong_answers_to_humaneval():
    def answer(document):
        right = document["task_id"] in ("Demo/0", "Demo/3", "Demo/5")
        return document["canonical_solution"] if right else "    return None\n"

    results, metadata, samples, prompts = run("exl2_humaneval_demo", answer)
    assert results["pass@1"] == 3 / 12
    assert results["pass@1_stderr"] == pytest.approx((3 / 12 * 9 / 12 / 11) ** 0.5)
    assert results["sandbox_errors"] == 0
    assert metadata["sandbox_used"]["level"] in ("bubblewrap", "landlock")
    assert metadata["outcomes"]["passed"] == 3
    assert metadata["outcomes"]["failed"] == 9
    assert metadata["reference_solutions_failing"] == []
    assert [sample["filtered_resps"][0][0]["outcome"] for sample in samples[:2]] == [
        "passed",
        "failed",
    ]
    assert prompts[0].startswith("def add_three(a, b, c):")


def test_mbpp_with_classes_and_several_functions():
    results, _, _, prompts = run("exl2_mbpp_demo", lambda document: document["code"], num_fewshot=3)
    assert results["pass@1"] == 1.0
    # Three worked examples, from the second of the split on, before the problem.
    assert prompts[0].count("[BEGIN]") == 4
    assert prompts[0].count("[DONE]") == 3
    assert "reverse_words" in prompts[0]
    assert "larger" not in prompts[0]
    results, *_ = run("exl2_mbpp_demo", lambda document: document["code"] + "\nNode = Pair = 0\n")
    assert results["pass@1"] == 3 / 5


def test_samples_give_pass_at_k_and_a_sampling_error(monkeypatch, tmp_path):
    scripted = ScriptedSandbox(lambda number: number % 10 < 3)  # three of ten, for every problem
    monkeypatch.setattr(programs, "_open_sandbox", lambda level: scripted)
    (tmp_path / "ten.yaml").write_text(
        f"include: {TASKS}/humaneval/exl2_humaneval_demo.yaml\n"
        "task: ten\n"
        "class: !function lm_eval_exl2.tasks.humaneval.HumanEval\n"
        "repeats: 10\n"
        "metadata: {k: [1, 10]}\n"
    )
    results, metadata, samples, _ = run("ten", lambda document: "", folders=[tmp_path])
    assert results["pass@1"] == pytest.approx(0.3)
    assert results["pass@10"] == 1.0
    assert results["pass@1_sampling_stderr"] == pytest.approx((0.3 * 0.7 / 10 / 12) ** 0.5)
    assert results["pass@1_stderr"] == pytest.approx(0.0)  # every problem does equally well
    assert metadata["outcomes"]["passed"] == 36
    assert len(samples[0]["filtered_resps"][0]) == 10


class ScriptedSandbox:
    """Verdicts by number, without running anything."""

    def __init__(self, passes, error=lambda number: False, reference=lambda number: True):
        self.passes, self.error, self.reference = passes, error, reference

    def judge(self, given, **_):
        def outcome(number):
            if self.error(number):
                return Outcome.SANDBOX_ERROR
            return Outcome.PASSED if self.passes(number) else Outcome.FAILED

        return [Verdict(outcome(number), "", 0.0) for number in range(len(given))]

    def measure(self, references):
        outcomes = [
            Outcome.PASSED if self.reference(number) else Outcome.REFUSED_OUTPUT
            for number in range(len(references))
        ]
        verdicts = [Verdict(outcome, "", 0.0) for outcome in outcomes]
        return Measured([4.0] * len(references), verdicts)

    def describe(self):
        return {"level": "scripted"}


def test_a_sandbox_error_is_counted_apart_and_is_no_wrong_answer(monkeypatch, caplog):
    monkeypatch.setattr(
        programs,
        "_open_sandbox",
        lambda level: ScriptedSandbox(lambda n: n >= 6, error=lambda n: n in (0, 7)),
    )
    results, metadata, _, _ = run("exl2_humaneval_demo", lambda document: "")
    assert results["sandbox_errors"] == 2
    assert results["pass@1"] == pytest.approx(5 / 10)
    assert metadata["outcomes"]["sandbox error"] == 2
    assert "left out of pass@k" in caplog.text


def test_where_the_reference_fails_a_failure_says_nothing_and_a_pass_still_counts(
    monkeypatch, caplog
):
    scripted = ScriptedSandbox(lambda n: n in (0, 2), reference=lambda n: n not in (0, 1))
    monkeypatch.setattr(programs, "_open_sandbox", lambda level: scripted)
    results, metadata, samples, _ = run("exl2_humaneval_demo", lambda document: "")
    assert results["sandbox_errors"] == 1  # problem 1; problem 0 passed all the same
    assert results["pass@1"] == pytest.approx(2 / 11)
    assert metadata["reference_solutions_failing"] == ["Demo/0", "Demo/1"]
    assert "reference" in samples[1]["filtered_resps"][0][0]["message"]
    assert "2 of 12 reference solutions do not pass" in caplog.text


def test_mbpp_takes_from_an_answer_what_the_tests_take_from_the_reference():
    document = {
        "code": "import sys, math as m\nimport os\nBASE = 1\ndef sum(a, b): return a + b\n"
        "def unused(): pass\nclass Pair: pass\nif True:\n    hidden = 1\n",
        "test_setup_code": "pair = Pair()",
        "test_list": ["assert sum(sys.maxsize, BASE) != len([pair])"],
    }
    program = make_program(document, "answer")
    assert program.names == ("BASE", "Pair", "sum")
    assert program.modules == ("sys",)
    assert program.source == "answer"
    assert program.tests.startswith("pair = Pair()\nassert sum(")


STOCK = Path(lm_eval.__file__).parent / "tasks"


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ("humaneval/exl2_humaneval", "humaneval/humaneval"),
        ("humaneval/exl2_humaneval_instruct", "humaneval/humaneval_instruct"),
        ("mbpp/exl2_mbpp", "mbpp/mbpp"),
    ],
)
def test_greedy_tasks_ask_what_the_stock_tasks_ask(ours, stock):
    def asked(folder, name):
        config = load_yaml(folder / f"{name}.yaml", resolve_func=False)
        fields = ("dataset_path", "dataset_name", "test_split", "doc_to_text", "doc_to_target")
        more = ("gen_prefix", "generation_kwargs", "num_fewshot", "repeats", "target_delimiter")
        found = {field: config.get(field) for field in (*fields, *more)}
        return found | {"repeats": found["repeats"] or 1}

    expected = asked(STOCK, stock)
    found = asked(TASKS, ours)
    # The same to Jinja, and to the model.
    for config in (expected, found):
        if config["gen_prefix"]:
            config["gen_prefix"] = config["gen_prefix"].replace("{{ prompt }}", "{{prompt}}")
    assert found == expected


def test_mbpps_examples_are_the_stock_tasks():
    source = ast.parse((STOCK / "mbpp/utils.py").read_text())
    (function,) = (
        node for node in source.body if getattr(node, "name", "") == "list_fewshot_samples"
    )
    stock = ast.literal_eval(function.body[-1].value)
    # The data set's own order: problems 1, 2, 3, ... of its split `prompt`.
    split = [
        {"task_id": 1},
        *({k: v for k, v in each.items() if k != "is_fewshot"} for each in stock),
    ]
    assert FromSecond(split).sample(3) == stock
    assert [each["task_id"] for each in stock] == [2, 3, 4]


def test_a_k_above_the_repeats_is_refused_before_anything_runs():
    with pytest.raises(OptionError, match=r"pass@10 needs at least 10 answers.*makes 1;"):
        run("exl2_humaneval_demo", lambda document: "", metadata={"k": [10]})


def test_without_a_sandbox_the_harness_asks_for_confirmation():
    metadata = {"sandbox": "none"}
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        run("exl2_humaneval_demo", lambda document: "", metadata=metadata)
    results, used, *_ = run(
        "exl2_humaneval_demo",
        lambda document: document["canonical_solution"],
        metadata=metadata,
        confirm_run_unsafe_code=True,
    )
    assert results["pass@1"] == 1.0
    assert used["sandbox_used"]["level"] == "none"


def test_an_unknown_level_is_refused():
    with pytest.raises(SandboxError, match="'docker' is unknown"):
        run("exl2_humaneval_demo", lambda document: "", metadata={"sandbox": "docker"})


def test_predict_only_runs_no_program(monkeypatch):
    monkeypatch.setattr(programs.ProgramTask, "judge", None)
    results, *_ = run("exl2_humaneval_demo", lambda document: "    pass", predict_only=True)
    assert "pass@1" not in results


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("    return 1\n\nprint(2)\n", "    return 1"),
        ("return 1", "    return 1"),
        ("\n    x = 1\n\n    return x\nclass A:", "    x = 1\n\n    return x"),
        # The first line may begin with anything; a later one ends the answer.
        ("x = 1\n    return x\n\n# done", "    x = 1\n    return x"),
    ],
)
def test_the_stop_rule_of_exllamav2s_script(answer, completion):
    assert HumanEvalExllamav2.complete(None, answer) == completion


def test_other_ways_to_complete_a_prompt():
    assert HumanEval.complete(None, "    a\n```\nb") == "    a\n```\nb"
    assert HumanEvalInstruct.complete(None, "    a\n```\nb") == "    a\n"


@pytest.mark.parametrize("name", ["10", "200", "instruct", "instruct_10", "instruct_200"])
def test_every_variant_is_found_by_name(name):
    manager = manage()
    assert f"exl2_humaneval_{name}" in manager.all_tasks
