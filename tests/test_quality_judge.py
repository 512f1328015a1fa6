"""Whole answers, good and bad, and what exl2_quality makes of them."""

import random

import pytest

from lm_eval_exl2.tasks.quality.judge import FAULTS, find_faults, score
from lm_eval_exl2.tasks.quality.prompts import PROMPTS, load_prompts

ALL = {prompt.id: prompt for prompt in load_prompts(PROMPTS)}
BREAD = ALL["diagnose-bread"]

BAD = {
    "empty": ["", "\n\n", "..."],
    "repetition": ["3\nAnswer: 3\nAnswer: 3\nAnswer: 3", "It was too old. " * 4, "so " * 99],
    "special_token": ["It rose too long.<|im_sep|>", "</s>"],
    "prompt_leak": ["9 Answer: 9 Answer: 9", "It rose.\nUser: why?", BREAD.instruction],
    "emoji": ["It rose too long \U0001f35e."],
    "language_drift": [
        "The \u9762\u56e2 rose too long.",
        "Der Teig ist einfach zu lange gegangen, "
        "weil die Hefe sehr stark war und niemand rechtzeitig nachgesehen hat, "
        "darum fiel er im Ofen zusammen.",
    ],
    "truncated": ["It rose too long because of the"],
    "limits": ["One. Two. Three. Four.", "word " * 71],
}

GOOD = {
    "diagnose-bread": (
        "The dough most likely rose for too long, so its gluten could no longer hold the gas "
        "when the heat arrived. Next time, press it with a finger before baking: if the dent "
        "stays, it has risen too far."
    ),
    "diagnose-website": (
        "I would first look at the network between the homes and the server, e.g. the VPN or "
        "the provider's routing. The server itself is quick and every browser is slow, so the"
        " time must be lost on the way."
    ),
    "diagnose-bicycle": (
        "The two cogs you use most are worn. Their teeth had worn together with the old, "
        "stretched chain, so both still fitted each other; the new chain has the right pitch "
        'and "climbs" over them.'
    ),
    "riddle-honey": "8. All but 8 jars are sold, so exactly those 8 stay on the shelf.",
    "riddle-ladder": "3 rungs. The boat floats, so the ladder rises together with the tide.",
    "riddle-saucer": (
        "50 cents: the cup then costs 12.50 euros, which is 12 euros more, and together they "
        "cost 13 euros."
    ),
    "riddle-fourth-child": (
        "Lena. She is the fourth child; the other three are named in the riddle."
    ),
    "count-spelling": (
        'Three. The words "libary", "Wendsday" and "untill" should be "library", "Wednesday" '
        'and "until".'
    ),
    "count-calendar": (
        "3 are wrong. A leap year has 366 days, April has 30 days, and two days have 48 hours."
    ),
    "explain-moon": (
        "The moon is a ball, and the sun shines on one half of it. As the moon walks around "
        "us, we see more or less of that bright half. So it looks round on one night and like"
        " a banana on another!"
    ),
    "explain-password": (
        "It is a locked box that remembers all your passwords for you. You only have to "
        "remember the one key that opens it."
    ),
    "history-eratosthenes": (
        "He knew that at noon the sun stood straight above Syene, while in Alexandria it cast"
        " a shadow of about 7.2\u00b0, a fiftieth of a circle. So the Earth had to be fifty times "
        "as large as the distance between the two towns. He assumed that the sun's rays are "
        "parallel and that both towns lie on one meridian."
    ),
    "history-mendeleev": (
        "1869. He left gaps for missing elements and foretold their weights and properties, "
        "e.g. those of gallium."
    ),
    "code-odd-sum": "9. The loop adds only the odd numbers from 1 to 5: 1 + 3 + 5 = 9.",
    "code-loop": (
        "It prints 4, because 100 becomes 33, 11, 3 and then 1, and each division counts as a step."
    ),
    "code-largest": (
        "The search starts at 0, which is larger than every negative number. Start with the "
        "first number instead:\n```python\nbest = numbers[0]\n```"
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_answer_of_each_kind_is_caught(fault):
    for answer in BAD[fault]:
        assert fault in find_faults(BREAD, answer), answer
        assert score(BREAD, answer)["clean"] == 0
        if fault != "limits":
            assert score(BREAD, answer)[fault] == 1


@pytest.mark.parametrize("name", GOOD)
def test_a_good_answer_has_no_fault(name):
    prompt = ALL[name]
    assert find_faults(prompt, GOOD[name]) == {}
    scores = score(prompt, GOOD[name])
    assert scores.pop("exact", 1) == 1
    assert scores.pop("clean") == scores.pop("limits_kept") == 1
    assert set(scores) == set(FAULTS) - {"limits"}
    assert not any(scores.values())


def test_exact_is_scored_only_where_there_is_an_exact_answer():
    assert "exact" not in score(BREAD, "It rose too long.")
    assert score(ALL["riddle-honey"], "15")["exact"] == 0
    assert score(ALL["riddle-honey"], "")["exact"] == 0


def test_an_empty_answer_keeps_no_limits_and_has_no_other_fault():
    assert list(find_faults(BREAD, " \n")) == ["empty", "limits"]


def test_any_text_can_be_judged():
    rng = random.Random(3)
    signs = "aA0 .\n`<|>[]:#\"'\u0000\ud800\u202e\u4f60\U0001f600\u0301-*"
    for prompt in (BREAD, ALL["riddle-honey"], ALL["code-loop"]):
        for _ in range(60):
            answer = "".join(rng.choices(signs, k=rng.randint(0, 80)))
            assert set(score(prompt, answer).values()) <= {0, 1}
