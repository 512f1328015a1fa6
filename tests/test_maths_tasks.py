"""GSM8K, MATH-500 and the demo through the harness: the stock scores, votes, scorers, errors."""

import json
import random
import sys
from itertools import count
from pathlib import Path

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.maths.task import MathsTask

# The harness's utils for MATH have such a string; compiling them may say so.
pytestmark = pytest.mark.filterwarnings("ignore:.*invalid escape sequence")

TASKS = Path(__file__).parents[1] / "task_configs"
STOCK = Path(lm_eval.__file__).parent / "tasks"

GSM8K = [
    {"question": f"What is {n} and {n}?", "answer": f"<<{n}+{n}={2 * n}>>{2 * n}\n#### {shown}"}
    for n, shown in [(4, "8"), (600, "1,200"), (5, "10.5"), (7, "-14"), (9, "$18")]
]  # fmt: skip
MATH = [
    {
        "problem": f"Find ${answer}$.",
        "solution": f"It is $\\boxed{{{answer}}}$.",
        "answer": "unused",
    }
    for answer in ("\\frac{1}{2}", "5", "(1,2)", "\\text{no}", "3/x")
]

DATA = """
import json
from pathlib import Path

from datasets import Dataset


def load(**_metadata):
    documents = json.loads(Path(__file__).with_name("documents.json").read_text())
    return {name: Dataset.from_list(documents) for name in ("train", "test")}
"""


class Model(LM):
    """Gives each problem its answers in turn."""

    def __init__(self, answers):
        super().__init__()
        self.answers, self.turns, self.prompts = answers, {}, []

    def generate_until(self, requests):
        self.prompts += [request.args[0] for request in requests]
        return [self.answer(request.doc) for request in requests]

    def answer(self, document):
        key = document.get("question") or document["problem"]
        return self.answers(document)[next(self.turns.setdefault(key, count()))]

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def run(task, answers, *, metadata=None, folders=(TASKS,), **arguments):
    """Values by "metric,filter" for the task, and its samples by filter."""
    manager = TaskManager(
        include_path=[str(folder) for folder in folders], include_defaults=False, metadata=metadata
    )
    model = Model(answers)
    found = lm_eval.simple_evaluate(
        model, tasks=[task], task_manager=manager, bootstrap_iters=10, **arguments
    )
    samples = {}
    for sample in found["samples"][task]:
        samples.setdefault(sample["filter"], []).append(sample)
    return found["results"][task], samples, model.prompts


@pytest.fixture
def local(tmp_path):
    """Writes a task that is another one on the documents given; gives its folder."""

    def write(original, documents, task_class=None, more="num_fewshot: 0\n"):
        (tmp_path / "maths_documents.py").write_text(DATA)
        (tmp_path / "documents.json").write_text(json.dumps(documents))
        chosen = f"class: !function lm_eval_exl2.tasks.maths.task.{task_class}\n"
        (tmp_path / "local.yaml").write_text(
            f"include: {original}\ntask: local\n{chosen if task_class else ''}"
            "custom_dataset: !function maths_documents.load\n" + more
        )
        return [tmp_path]

    return write


def both(local, ours, stock, documents, answers):
    """The same answers to the same documents, judged by our task and by the stock one."""
    found = []
    for original, task_class in ((f"{TASKS}/maths/{ours[0]}.yaml", ours[1]), (stock, None)):
        folders = local(original, documents, task_class, "")
        found.append(run("local", answers, folders=folders))
        sys.modules.pop("maths_documents", None)
    return found


def scores(samples, name):
    return [float(sample["exact_match"]) for sample in samples[name]]


ENDINGS = [
    "#### {}", "#### ${}", "####{}", "#### {}.", "#### {}..", "so {}", "so ${}.", "so {} eggs",
    "#### {} #### 3", "it is {}.00", "{}.", "{}, or so...", "#### -{}", "#### .", "nothing", "",
    "#### {},", "- {}", "{} {}", "#### x{}",
]  # fmt: skip


def test_gsm8k_gives_the_stock_prompts_and_scores(local):
    documents = [
        {"question": f"{place}: {document['question']}", "answer": document["answer"]}
        for place, document in enumerate(GSM8K * 6)
    ]

    def answers(document):
        place = int(document["question"].split(":")[0])
        target = document["answer"].split("#### ")[1]
        return [f"Well. 8\n{ENDINGS[place % len(ENDINGS)].format(target, 8)}"]

    ours, theirs = both(
        local, ("exl2_gsm8k", "MathsTask"), STOCK / "gsm8k/gsm8k.yaml", documents, answers
    )
    assert ours[2] == theirs[2]
    assert ours[2][0].count("Question:") == 6
    for name in ("strict-match", "flexible-extract"):
        assert scores(ours[1], name) == scores(theirs[1], name)
        assert 3 < sum(scores(ours[1], name)) < 20
        for metric in ("exact_match", "exact_match_stderr"):
            assert ours[0][f"{metric},{name}"] == theirs[0][f"{metric},{name}"]


def test_math500_gives_the_stock_prompts_and_scores(local):
    texts = ["${}$", "{}", "Let $x$ be ${}$.", "so $\\boxed{{{}}}$"]
    documents = [
        {**document, "problem": f"{place}: {document['problem']}"}
        for place, document in enumerate(MATH * 4)
    ]

    def answers(document):
        place = int(document["problem"].split(":")[0])
        return [texts[place // len(MATH)].format(document["answer"].replace("\\frac", "\\dfrac"))]

    ours, theirs = both(
        local,
        ("exl2_math500", "LatexTask"),
        STOCK / "hendrycks_math/hendrycks_math500.yaml",
        documents,
        answers,
    )
    assert ours[2] == theirs[2]
    assert scores(ours[1], "dollars") == scores(theirs[1], "none") == [1.0] * 10 + [0.0] * 10
    assert ours[0]["exact_match,dollars"] == theirs[0]["exact_match,none"]
    assert scores(ours[1], "boxed") == [0.0] * 15 + [1.0] * 5


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ("exl2_gsm8k", "gsm8k/gsm8k.yaml"),
        ("exl2_math500", "hendrycks_math/hendrycks_math500.yaml"),
    ],
)
def test_greedy_tasks_are_set_up_as_the_stock_tasks(ours, stock):
    found, expected = (
        load_yaml(path, resolve_func=False)
        for path in (TASKS / f"maths/{ours}.yaml", STOCK / stock)
    )
    fields = ["dataset_path", "dataset_name", "test_split", "doc_to_text", "doc_to_target"]
    fields += ["generation_kwargs", "num_fewshot", "fewshot_split", "metric_list"]
    for field in fields:
        assert found.get(field) == expected.get(field), field
    if ours == "exl2_gsm8k":  # without take_first: there is one answer
        assert found["filter_list"] == [
            {**each, "filter": each["filter"][:1]} for each in expected["filter_list"]
        ]


EIGHT = ["#### 8"] * 3 + ["#### 9"] * 2 + ["4 + 4 = 9\n#### 9", "no idea", "#### 7"]


def test_metrics_of_sampled_answers_by_hand(local):
    folders = local(f"{TASKS}/maths/exl2_gsm8k_8.yaml", GSM8K[:1], "MathsTask")
    results, samples, prompts = run(
        "local", lambda _: EIGHT, folders=folders, metadata={"k": [1, 8]}
    )
    assert len(prompts) == 8
    assert prompts[0] == "Question: What is 4 and 4?\nAnswer:"
    found = {
        name.removesuffix(",strict-match"): value
        for name, value in results.items()
        if name.endswith(",strict-match") and "stderr" not in name
    }
    assert found == pytest.approx(
        {
            "exact_match": 3 / 8,
            "maj@1": 3 / 8,
            "maj@8": 1 / 2,  # three votes each for 8 and for 9
            "pass@1": 3 / 8,
            "pass@8": 1.0,
            "error_format": 1 / 8,
            "error_arithmetic": 1 / 8,
            "error_other": 3 / 8,
        }
    )
    (sample,) = samples["strict-match"]
    assert sample["filtered_resps"][0][5] == {
        "vote": "9",
        "right": False,
        "error": "arithmetic",
        "false_equation": "4 + 4 = 9",
    }
    assert sample["filtered_resps"][0][0] == {"vote": "8", "right": True}
    assert sample["filtered_resps"][0][6] == {"vote": None, "right": False, "error": "format"}
    assert sample["maj@8"] == 0.5


def test_errors_add_up_to_what_is_not_right(local):
    rng = random.Random(2)
    texts = ["#### 8", "4+4=8\n#### 8", "4+4=9 #### 9", "#### 9", "nothing", "1+1=3", "8"]
    given = {document["question"]: rng.choices(texts, k=8) for document in GSM8K}
    folders = local(f"{TASKS}/maths/exl2_gsm8k_8.yaml", GSM8K, "MathsTask")
    _, samples, _ = run("local", lambda d: given[d["question"]], folders=folders)
    for sample in (*samples["strict-match"], *samples["flexible-extract"]):
        errors = sum(sample[f"error_{kind}"] for kind in ("format", "arithmetic", "other"))
        assert errors == pytest.approx(1 - sample["exact_match"])
        # A wrong result beside a false equation, and only there.
        for text, record in zip(sample["resps"][0], sample["filtered_resps"][0], strict=True):
            false = "4+4=9" in text or "1+1=3" in text
            expected = None if record["right"] else "arithmetic" if false else "other"
            assert record.get("error") == ("format" if record["vote"] is None else expected)


SCORERS = """
calls = []

def longest(document, answers):
    calls.append((document["question"], answers))
    return [len(answer) for answer in answers]

def short(document, answers): return [1.0]
def nan(document, answers): return [float("nan")] * len(answers)
def words(document, answers): return ["good"] * len(answers)
number = 3
"""


@pytest.fixture
def scorers(tmp_path, monkeypatch):
    """A module of scorers that can be imported."""
    folder = tmp_path / "scorers"
    folder.mkdir()
    (folder / "my_scorers.py").write_text(SCORERS)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("my_scorers", None)


@pytest.mark.usefixtures("scorers")
def test_a_scorer_is_asked_once_per_problem_and_gives_best_at_k(local):
    folders = local(f"{TASKS}/maths/exl2_gsm8k_8.yaml", GSM8K[:2], "MathsTask")
    metadata = {"k": [2, 8], "scorer": "my_scorers:longest"}
    texts = ["#### 8", "#### 08", "#### 1200"] + ["8"] * 5
    results, samples, _ = run("local", lambda _: texts, folders=folders, metadata=metadata)
    import my_scorers

    assert my_scorers.calls == [(document["question"], texts) for document in GSM8K[:2]]
    # "#### 1200" is the longest: right for the second problem, wrong for the first.
    assert [sample["best@8"] for sample in samples["strict-match"]] == [0.0, 1.0]
    # Of 28 pairs, "#### 8" is the best in those with one of the five short answers.
    assert samples["strict-match"][0]["best@2"] == pytest.approx(5 / 28)
    assert results["best@8,strict-match"] == 0.5
    assert samples["strict-match"][0]["filtered_resps"][0][2]["score"] == 9.0


def test_without_a_scorer_there_is_no_best_of_n(local):
    folders = local(f"{TASKS}/maths/exl2_gsm8k_8.yaml", GSM8K[:1], "MathsTask")
    results, *_ = run("local", lambda _: EIGHT, folders=folders)
    assert not [name for name in results if name.startswith("best")]
    assert {"maj@4,strict-match", "pass@8,strict-match"} <= results.keys()


@pytest.mark.usefixtures("scorers")
@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("my_scorers", "'my_scorers' is not of the form module:function"),
        ("my_scorers:", "not of the form module:function"),
        (7, "scorer=7 is not of the form"),
        ("no_such_module:score", r"'no_such_module' cannot be imported \(No module named"),
        ("my_scorers:shortest", "'my_scorers' has no such function"),
        ("my_scorers:number", "'my_scorers' has a int there; name a function"),
        ("my_scorers:short", "gave 1 scores for 8 answers"),
        ("my_scorers:nan", "gave NaN"),
        ("my_scorers:words", "gave 'good', which is no number"),
    ],
)
def test_what_is_wrong_with_a_scorer_is_said_in_one_line(local, scorer, message):
    folders = local(f"{TASKS}/maths/exl2_gsm8k_8.yaml", GSM8K[:1], "MathsTask")
    with pytest.raises(OptionError, match=message) as raised:
        run("local", lambda _: EIGHT, folders=folders, metadata={"scorer": scorer})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("k", "message"),
    [(9, "pass@9 needs at least 9"), ([0], "pass@0 needs"), ("4", "k='4' is no"), ([2.5], "is no")],
)
def test_a_k_that_cannot_be_is_refused(k, message):
    with pytest.raises(OptionError, match=message):
        run("exl2_maths_demo", lambda _: ["1"] * 8, metadata={"k": k})


def test_one_k_may_be_given_as_a_number():
    results, *_ = run("exl2_maths_demo", lambda _: [" 1"] * 8, metadata={"k": 3})
    assert "maj@3,first-number" in results
    assert "maj@8,first-number" not in results


def test_a_filter_that_drops_answers_is_refused(local):
    first = "num_fewshot: 0\nfilter_list: [{name: one, filter: [{function: take_first}]}]\n"
    folders = local(f"{TASKS}/maths/exl2_gsm8k_8.yaml", GSM8K[:1], "MathsTask", first)
    with pytest.raises(OptionError, match=r"filter 'one' of local .* leave out take_first"):
        run("local", lambda _: EIGHT, folders=folders)


def test_predict_only_judges_nothing(monkeypatch):
    monkeypatch.setattr(MathsTask, "judge", None)
    results, samples, _ = run("exl2_maths_demo", lambda _: [" 1"] * 8, predict_only=True)
    assert "exact_match,first-number" not in results
    assert samples["first-number"][0]["resps"] == [[" 1"] * 8]


def test_the_demo_sums_show_every_kind_of_error():
    def answers(document):
        right = document["answer"]
        return [f" {right}"] * 5 + [" 3", " 3 + 3 = 9", "x"]

    results, samples, prompts = run("exl2_maths_demo", answers)
    found = {name.removesuffix(",first-number"): value for name, value in results.items()}
    assert found["exact_match"] == 5 / 8
    assert found["maj@8"] == 1.0
    assert found["maj@8_stderr"] == 0.0
    assert found["error_format"] == 1 / 8
    assert found["error_arithmetic"] + found["error_other"] == pytest.approx(2 / 8)
    assert "24 + 13 =" in prompts
    (first,) = [
        sample for sample in samples["first-number"] if sample["doc"]["problem"] == "24 + 13 ="
    ]
    assert first["filtered_resps"][0][5]["false_equation"] == "24 + 13 = 3"
    for sample in samples["first-number"]:  # what the sums say is what the documents say
        numbers = [int(word) for word in sample["doc"]["problem"].split() if word.isdigit()]
        assert sum(numbers) == int(sample["doc"]["answer"])


@pytest.mark.usefixtures("scorers")
def test_a_scorer_is_not_asked_where_there_is_one_answer(local):
    folders = local(f"{TASKS}/maths/exl2_gsm8k.yaml", GSM8K[:1], "MathsTask")
    results, *_ = run(
        "local", lambda _: ["#### 8"], folders=folders, metadata={"scorer": "my_scorers:nan"}
    )
    names = {name.split(",")[0] for name in results if name.endswith(",strict-match")}
    errors = {"error_format", "error_arithmetic", "error_other"}
    assert {name for name in names if not name.endswith("_stderr")} == {"exact_match", *errors}
