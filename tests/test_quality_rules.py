"""How exl2_quality counts, finds the answer and finds loops: cases worked out by hand."""

import random
from collections import Counter

import pytest

from lm_eval_exl2.tasks.quality.exact import first_candidate, is_exact
from lm_eval_exl2.tasks.quality.limits import broken_limit
from lm_eval_exl2.tasks.quality.prompts import PROMPTS, load_prompts, read_prompt
from lm_eval_exl2.tasks.quality.repetition import find_repetition
from lm_eval_exl2.tasks.quality.text import sentences, split_code, tokens, words

ALL = {prompt.id: prompt for prompt in load_prompts(PROMPTS)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Wait... what? Yes", ["Wait... what?", "Yes"]),
        ("It costs 3.50 euros, e.g. at Dr. Smith's. J. J. Thomson agreed.",
         ["It costs 3.50 euros, e.g. at Dr. Smith's.", "J. J. Thomson agreed."]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("**Yes.** It is.", ["**Yes.**", "It is."]),
        ("1. First\n2. Second, too\n\n- third.", ["First", "Second, too", "third."]),
        ("Look:\n```python\nprint(1). Do\n```\nDone.", ["Look:", "Done."]),
        ("...\n---\n", []),
    ],
)  # fmt: skip
def test_sentences_by_hand(text, expected):
    assert sentences(text) == expected


def test_code_is_what_stands_between_fences():
    assert split_code("a\n ```python\nb\n```\nc") == ("a\nc", "b", False)
    assert split_code("a\n```\nb") == ("a", "b", True)
    assert split_code("```a``` is code\nin a line: ```") == (
        "```a``` is code\nin a line: ```",
        "",
        False,
    )


def test_words_by_hand():
    assert words("It's 5 o'clock - or well-nigh 3.5, no?") == [
        "It's", "5", "o'clock", "or", "well-nigh", "3.5,", "no?",
    ]  # fmt: skip
    assert tokens("It's a WELL-made 3.5\u2019s") == ["it's", "a", "well", "made", "3", "5\u2019s"]


def make(**given):
    fields = {"id": "p", "kind": "k", "prompt": "?", "max_sentences": 2, "max_words": 6}
    return read_prompt(fields | given)


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        ("One two three. Four five six.", ""),
        ("One two three. Four five six seven.", "7 words"),
        ("One. Two. Three.", "3 sentences"),
        ("One\nTwo\nThree", "3 sentences"),
    ],
)
def test_limits_by_hand(answer, broken):
    assert broken_limit(make(), answer) == broken


def test_a_minimum_of_sentences_and_words_to_avoid():
    assert broken_limit(make(min_sentences=2), "Only one.") == "1 sentence"
    assert broken_limit(make(min_sentences=2), "One. Two.") == ""
    assert broken_limit(make(avoid=["light"]), "It is Light.") == '"light" is said'
    assert broken_limit(make(avoid=["light"]), "A slight delight.") == ""


# Exact answers


@pytest.mark.parametrize(
    ("answer", "candidate"),
    [
        ("9", "9"),
        (" **Nine.** Not 17.", "9"),
        ("The answer is 9 because 6 > 3.", "9"),
        ("17 jars, of which 9", "17"),
        ("$1,869.00", "1869"),
        ("twenty-one", "21"),
        ("Thirty years", "30"),
        ("3.5", "3.5"),
        ("-9", "-9"),
        ("\u22129", "-9"),
        ("On the 9th day, 4 more", "4"),
        ("x9 = 4", "4"),
        ("9cm", "9"),
        ("\\boxed{9}", "9"),
        ("[15, 16]", "15"),
        ("15,16", "15"),
        ("Someone tends to it, none else", ""),
        ("", ""),
    ],
)
def test_the_first_number_is_the_answer(answer, candidate):
    prompt = make(answers=["9"])
    assert first_candidate(prompt, answer) == candidate
    assert is_exact(prompt, answer) == (candidate == "9")


def test_the_first_listed_word_is_the_answer():
    lena = ALL["riddle-fourth-child"]
    assert is_exact(lena, "LENA. North, East and South are the others.")
    assert not is_exact(lena, "West, not Lena.")
    assert not is_exact(lena, "North, East, South and Lena.")
    assert not is_exact(lena, "Lenas")
    assert not is_exact(lena, "4")
    clean = ALL["count-clean"]
    assert all(is_exact(clean, right) for right in ("0", "Zero.", "None of them.", "No words are."))
    assert not is_exact(clean, "3: necklace, although, definitely. None else.")


# Repetition

LOOPS = {
    "a word": "It is very very very very very very very very",
    "two words": "so it goes, so it goes on and on and on and on and on",
    "a sentence twice": "The yeast was too old to raise it. The yeast was too old to raise it.",
    "endless answers": "3\nAnswer: 3\nAnswer: 3\nAnswer: 3",
    "a sentence, but not in a row": "I see. So it was. Why? So it was. No. So it was.",
    "signs": "No way!!!!!!!!!!!!!!!!!!!!",
    "dots": "I think ............................",
    "letters": "Haaaaaaaaaaaaaaaaaaa",
    "signs without blanks": "\u597d\u7684" * 10,
    "numbers": "It is " + "0 " * 24,
    "digits": "It is 3." + "3" * 40,
    "code": "```\n" + "x = input()\n" * 12 + "```",
    "a long unit": " ".join(f"w{number}" for number in range(100)) + " "
    + " ".join(f"w{number}" for number in range(100)),
}  # fmt: skip

NO_LOOPS = {
    "nothing": "",
    "emphasis": "It was a very, very, very good year, and no, no, no, I do not regret it.",
    "a list": "- red apples\n- green apples\n- red pears\n- green pears",
    "counting": "Day 1: up 4, down 3. Day 2: up 4, down 3. Day 3: up 4, down 3. Day 4: up 4.",
    "steps": "Step 1: add 2. Step 2: add 3. Step 3: add 2. Step 4: add 3.",
    "code": "```python\nprint('a')\nprint('a')\nprint('a')\nprint('a')\n}\n}\n}\n```",
    "a matrix": "[[0, 0, 0], [0, 0, 0], [0, 0, 0]]",
    "a table": "| a | b |\n|---------------|------------------|\n| 1 | 2 |\n| 1 | 2 |\n| 1 | 2 |",
    "a ruler": "Cause\n====================\nHeat.",
    "a large number": "It is 1,000,000,000,000,000,000 or 10000000000000000000000.",
    "binary": "It is 0101 0101 0101 0101 0101.",
    "said twice": "It was so. Nobody knew. It was so.",
    "a song": "Row, row, row your boat, gently down the stream.",
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found(name):
    assert find_repetition(LOOPS[name])


@pytest.mark.parametrize("name", NO_LOOPS)
def test_what_only_looks_like_a_loop_is_not_found(name):
    assert not find_repetition(NO_LOOPS[name])


def test_the_unit_of_a_loop_is_shown():
    assert find_repetition("ok a bc de a bc de a bc de") == "a bc de"


def repeats_by_definition(found):
    """Rule 1 for prose, read off its definition: every unit at every place."""
    for start in range(len(found)):
        for size in range(1, (len(found) - start) // 2 + 1):
            unit = found[start : start + size]
            times = 1
            while found[start + times * size : start + (times + 1) * size] == unit:
                times += 1
            has_words = any(len(word) > 1 and not word.isdigit() for word in unit)
            rest = found[start + times * size :]
            tail = 0  # the beginning of one more repeat covers words, too
            while tail < min(size, len(rest)) and rest[tail] == unit[tail]:
                tail += 1
            covered = times * size + tail
            if times >= 3 and covered >= (8 if has_words else 24):
                return True
            if times >= 2 and size >= 8 and has_words:
                return True
    return False


def test_repeated_words_are_found_exactly_where_the_definition_says():
    rng = random.Random(7)
    seen = Counter()
    for _ in range(1500):
        alphabet = rng.choice((["aa", "bb"], ["aa", "b", "1"], ["1", "2"], ["aa", "bb", "cc"]))
        unit = rng.choices(alphabet, k=rng.randint(1, 9))
        found = rng.choices(alphabet, k=rng.randint(0, 4)) + unit * rng.randint(1, 9)
        found += unit[: rng.randint(0, 3)] + rng.choices(alphabet, k=rng.randint(0, 4))
        expected = repeats_by_definition(found)
        assert bool(find_repetition(" ".join(found))) == expected, found
        seen[expected] += 1
    assert min(seen.values()) > 100
