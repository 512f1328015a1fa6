"""What an answer says, and when two results are equal: as in the harness's own tasks."""

from itertools import product
from pathlib import Path

import lm_eval
import pytest
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_exl2.tasks.maths.extract import between_dollars, last_box, normal_form
from lm_eval_exl2.tasks.maths.task import LatexTask

# The harness's utils for MATH have such a string; compiling them may say so.
pytestmark = pytest.mark.filterwarnings("ignore:.*invalid escape sequence")

STOCK = Path(lm_eval.__file__).parent / "tasks"


def test_numbers_match_as_in_the_stock_gsm8k():
    stock = load_yaml(STOCK / "gsm8k/gsm8k.yaml", resolve_func=False)
    (metric,) = stock["metric_list"]
    named = ("ignore_case", "ignore_punctuation", "regexes_to_ignore")
    comparing = {name: metric[name] for name in named}
    texts = [
        "8",
        "8.",
        "8..",
        "$8",
        "1,200",
        "1200",
        "1,200.",
        "1200.0",
        "-14",
        "- 14",
        "$1,200.00",
    ]
    texts += ["x\n#### 8", "x\n#### 1,200 ", "A", "a", ".", ""]
    for first, second in product(texts, texts):
        expected = exact_match_hf_evaluate([first], [second], **comparing)["exact_match"]
        same = normal_form(first, **comparing) == normal_form(second, **comparing)
        assert same == expected, (first, second)


def test_other_options_of_exact_match_are_the_harness_s_too():
    for options in (
        {},
        {"ignore_punctuation": True},
        {"ignore_numbers": True, "ignore_case": True},
    ):
        for first, second in product(["A-1!", "a1", "A", "a 2", "1"], repeat=2):
            expected = exact_match_hf_evaluate([first], [second], **options)["exact_match"]
            assert (normal_form(first, **options) == normal_form(second, **options)) == expected


RESULTS = [
    "\\frac{1}{2}", "\\dfrac12", "1/2", "0.5", ".5", "5", "x = 5", "5\\%", "5^\\circ", "x^2 + 1",
    "x^2+1", "(1, 2)", "\\left(1,2\\right)", "\\text{no}", "no", "\\text{no}\\text{ m}", "3/x",
    "3 / x", "\\text{ a}\\text{ b}", "\\sqrt2", "\\sqrt{2}", "\\sqrt", "\\frac", "\n5", "a=b=c",
]  # fmt: skip


def test_votes_are_the_same_exactly_where_the_stock_math_task_calls_results_equal():
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    found = []
    for first, second in product(RESULTS, RESULTS):
        same = LatexTask.vote(None, first) == LatexTask.vote(None, second)
        assert same == is_equiv(first, second), (first, second)
        found.append(same)
    assert sum(found) > len(RESULTS)
    assert LatexTask.vote(None, "") is None
    assert LatexTask.vote(None, " ") is None


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("so $\\boxed{5}$.", "5"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {a} and \\fbox{b}", "b"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{3} and \\boxed{cut o", "3"),
        ("\\boxed 5", ""),
        ("no box", ""),
        ("", ""),
    ],
)
def test_the_last_closed_box_is_the_result(text, box):
    assert last_box([[text]], None) == [[box]]


def test_between_dollars_is_what_stands_between_the_outermost():
    texts = ["a $1$ b", "$a$ or $b$", "no", "one $", "$$", ""]
    assert between_dollars([texts], None) == [["1", "a$ or $b", "no", "one $", "", ""]]
