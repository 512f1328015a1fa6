"""The quality prompts: their keys are right, by a way of reckoning that knows no key."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.quality.faults import find_emoji, find_special_token
from lm_eval_exl2.tasks.quality.language import find_language_drift
from lm_eval_exl2.tasks.quality.prompts import (
    DEMO_PROMPTS,
    PROMPTS,
    Prompt,
    load_prompts,
    read_prompt,
)
from lm_eval_exl2.tasks.quality.repetition import find_repetition
from lm_eval_exl2.tasks.quality.text import split_code

ALL = {prompt.id: prompt for prompt in load_prompts(PROMPTS)}


def test_there_are_enough_prompts_of_six_kinds_and_ids_are_unique():
    kinds = Counter(prompt.kind for prompt in load_prompts(PROMPTS))
    assert set(kinds) == {"diagnose", "riddle", "count", "explain", "history", "code"}
    assert min(kinds.values()) >= 4
    assert len(ALL) == sum(kinds.values()) >= 24
    demo = load_prompts(DEMO_PROMPTS)
    assert len({prompt.id for prompt in demo}) == len(demo) == 24


def test_prompts_with_an_exact_answer_ask_to_begin_with_it():
    for prompt in ALL.values():
        asks = re.search(r"Begin with the (number|name|year)", prompt.prompt)
        assert bool(asks) == bool(prompt.answers), prompt.id


def test_every_instruction_names_its_limits():
    for prompt in ALL.values():
        count = prompt.max_sentences
        assert ("one sentence" if count == 1 else f"{count} sentences") in prompt.instruction
        assert f"at most {prompt.max_words} words" in prompt.instruction


def test_no_prompt_breaks_its_own_rules():
    for prompt in ALL.values():
        text = f"{prompt.instruction}\n\n{prompt.prompt}"
        assert not find_special_token(text), prompt.id
        assert not find_emoji(text), prompt.id
        assert not find_repetition(prompt.prompt), prompt.id
        assert not find_language_drift(text), prompt.id
        for word in prompt.avoid:
            assert word.rstrip("s") in text or word in ("orbiting", "queries"), prompt.id


def test_what_the_programs_print_is_what_their_keys_say():
    asked = [prompt for prompt in ALL.values() if prompt.kind == "code" and prompt.answers]
    assert len(asked) == 4
    program = "\n".join(split_code(prompt.prompt).code for prompt in asked)
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == [prompt.answers[0] for prompt in asked]


def test_wrong_sums_are_counted_right():
    operations = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
    }
    sums = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", ALL["count-sums"].prompt)
    wrong = sum(operations[sign](int(a), int(b)) != int(c) for a, sign, b, c in sums)
    assert len(sums) == 5
    assert ALL["count-sums"].answers == (str(wrong),)


@pytest.mark.parametrize(
    ("name", "corrections"),
    [
        ("count-spelling", {"libary": "library", "Wendsday": "Wednesday", "untill": "until"}),
        ("count-usage", {"Their": "They're", "tomorow": "tomorrow", "to.": "too.", "Its": "It's"}),
        ("count-clean", {}),
    ],
)
def test_mistakes_are_counted_right(name, corrections):
    text = ALL[name].prompt.partition("\n\n")[2]
    assert all(text.count(wrong) == 1 for wrong in corrections)
    assert ALL[name].answers[0] == str(len(corrections))


def test_wrong_statements_are_counted_right():
    text = ALL["count-calendar"].prompt.partition("\n\n")[2].strip('"')
    truths = {
        "A week has seven days.": True,
        "A leap year has 365 days.": False,
        "April has 31 days.": False,
        "An hour has 60 minutes.": True,
        "Two days have 46 hours.": False,
        "December is the last month of the year.": True,
    }
    assert " ".join(truths) == text
    assert ALL["count-calendar"].answers == (str(list(truths.values()).count(False)),)


def test_riddles_are_solved_right():
    # What is asked, computed from the numbers of the text.
    numbers = {name: list(map(int, re.findall(r"\d+", ALL[name].prompt))) for name in ALL}
    (_, honey), eggs, (_, sisters), ladder, (together, more) = (
        numbers[f"riddle-{name}"] for name in ("honey", "eggs", "sisters", "ladder", "saucer")
    )
    assert ALL["riddle-honey"].answers == (str(honey),)  # "all but" that many are sold
    assert ALL["riddle-eggs"].answers == (str(eggs[1]),)  # eggs in one pot take the same time
    assert ALL["riddle-sisters"].answers == (str(sisters),)  # a brother's sisters are all girls
    assert ALL["riddle-ladder"].answers == (str(ladder[1]),)  # the boat rises with the tide
    cents = next(c for c in range(1301) if c + (c + 100 * more) == 100 * together)
    assert ALL["riddle-saucer"].answers == (str(cents),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (None, "found NoneType"),
        ({"question": "?"}, "no text `id`"),
        ({"id": "a", "kind": "b", "prompt": "c", "max_words": 5}, "no number `max_sentences`"),
        (
            {"id": "a", "kind": "b", "prompt": "c", "max_words": 5, "max_sentences": 1, "avoid": 3},
            "damaged document 'a'",
        ),
    ],
)
def test_a_document_of_another_task_is_refused(row, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        read_prompt(row)


def test_prompt_documents_can_be_read_back():
    assert isinstance(ALL["diagnose-bread"], Prompt)
    rows = {field: getattr(ALL["diagnose-bread"], field) for field in Prompt.__dataclass_fields__}
    assert read_prompt(rows) == ALL["diagnose-bread"]
