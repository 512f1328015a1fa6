"""Generation: what ends a text, what belongs to it, and which random stream it gets.

The engine is scripted and a token is one letter, so that every text can be worked out by hand.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.engines.scripted import ScriptedEngine, scripted_logits
from lm_eval_exl2.generation import Prompt, generate, text_of, with_seeds

LETTERS = "abcdefgh"
SPECIAL = 7


class LetterStream:
    """Gives out the letter of each token."""

    def push(self, token_id):
        return LETTERS[token_id]


class Letters:
    """Stands in for an Encoder: token 7 is special, the others are ordinary letters."""

    def stream(self):
        return LetterStream()

    def is_special(self, token_id):
        return token_id == SPECIAL

    def decode(self, token_ids, *, skip_special_tokens):
        hidden = SPECIAL if skip_special_tokens else None
        return "".join(LETTERS[token] for token in token_ids if token != hidden)


class Recorder(ScriptedEngine):
    """Remembers the requests it is given."""

    def generate(self, requests, is_finished):
        self.requests = list(requests)
        return super().generate(self.requests, is_finished)


def prompt(index, ids=(1, 2), *, tokens=12, minimum=0, until=(), sampling=None):
    return Prompt(index, list(ids), tokens, minimum, list(until), sampling or {})


def continued(ids, tokens):
    """What the scripted engine says, worked out here."""
    ids = list(ids)
    for _ in range(tokens):
        logits = scripted_logits(ids, len(LETTERS))
        ids.append(logits.index(max(logits)))
    return ids[-tokens:]


def run(*prompts, eos_ids=(), think_end=None, engine=None):
    found = generate(
        prompts,
        engine or ScriptedEngine(),
        Letters(),
        eos_ids=frozenset(eos_ids),
        think_end=think_end,
    )
    texts = {one.index: "".join(LETTERS[token] for token in one.token_ids) for one in found}
    assert len(texts) == len(prompts)
    return texts


WHOLE = "".join(LETTERS[token] for token in continued((1, 2), 12))


def test_a_text_ends_after_the_tokens_asked_for():
    assert run(prompt(0), prompt(1, tokens=5), prompt(2, tokens=0)) == {
        **{0: WHOLE, 1: WHOLE[:5]},
        2: "",
    }


@pytest.mark.parametrize(("first", "last"), [(3, 4), (2, 6), (5, 8)])
def test_a_stop_string_ends_the_text_with_the_token_that_completes_it(first, last):
    stop = WHOLE[first:last]
    end = WHOLE.index(stop) + len(stop)
    assert run(prompt(0, until=["zz", stop])) == {0: WHOLE[:end]}


def test_every_prompt_has_stop_strings_of_its_own():
    found = run(prompt(0, until=[WHOLE[:1]]), prompt(1, until=[WHOLE[:3]]), prompt(2))
    assert found == {0: WHOLE[:1], 1: WHOLE[:3], 2: WHOLE}


@pytest.mark.parametrize("end", sorted(set(WHOLE)))
def test_an_ordinary_token_that_ends_a_text_is_part_of_it_and_a_special_one_is_not(end):
    token, place = LETTERS.index(end), WHOLE.index(end)
    kept = place if token == SPECIAL else place + 1
    assert run(prompt(0), eos_ids=[token]) == {0: WHOLE[:kept]}


def test_the_minimum_of_tokens_is_passed_on_and_kept():
    engine = Recorder()
    token = LETTERS.index(WHOLE[0])
    found = run(prompt(0, minimum=3), eos_ids=[token], engine=engine)
    assert len(found[0]) >= 3
    (request,) = engine.requests
    assert (request.min_new_tokens, request.stop_ids) == (3, {token})


@pytest.mark.parametrize("think_end", [WHOLE[2:4], LETTERS.index(WHOLE[3])])
def test_stop_strings_count_only_after_the_reasoning(think_end):
    stop = WHOLE[1]
    again = WHOLE.index(stop, 4)
    assert run(prompt(0, until=[stop])) == {0: WHOLE[:2]}
    assert run(prompt(0, until=[stop]), think_end=think_end) == {0: WHOLE[: again + 1]}


def test_a_stop_string_does_not_begin_inside_the_reasoning():
    stop = WHOLE[2:4]
    assert WHOLE.count(stop) == 1
    assert run(prompt(0, until=[stop]), think_end=WHOLE[1:3]) == {0: WHOLE}


@given(st.permutations(range(6)))
def test_prompts_reach_the_engine_in_the_order_of_their_tokens(order):
    all_ids = [(1, 2), (1,), (1, 2, 3), (0, 5), (1, 2), (4,)]
    engine = Recorder()
    run(*[prompt(index, all_ids[index]) for index in order], engine=engine)
    asked = [(request.prompt_ids, request.index) for request in engine.requests]
    assert asked == sorted(asked)


def seeds(prompts, seed):
    return {prompt.index: prompt.seed for prompt in with_seeds(prompts, seed)}


@given(st.permutations(range(6)), st.integers(0, 3))
def test_seeds_depend_on_content_and_repeat_and_not_on_order(order, seed):
    all_ids = [(1, 2), (1,), (1, 2), (0, 5), (1, 2), (4,)]
    prompts = [
        prompt(index, ids, sampling={"do_sample": True}) for index, ids in enumerate(all_ids)
    ]
    straight, mixed = seeds(prompts, seed), seeds([prompts[index] for index in order], seed)
    assert sorted(straight.values()) == sorted(mixed.values())
    assert len(set(straight.values())) == 6
    assert all(straight[index] == mixed[index] for index in (1, 3, 5))
    assert not set(straight.values()) & set(seeds(prompts, seed + 1).values())
    assert max(straight.values()) < 1 << 63


def cut(text, marker):
    """Stands in for the harness's function: shows what it was given."""
    return f"{marker}|{text}"


@pytest.mark.parametrize(
    ("ids", "think_end", "expected"),
    [
        ([0, 1, 2], None, "None|abc"),
        ([0, 1, 2], "b", "b|abc"),
        ([0, 1, 2, 1, 3], 1, "None|d"),
        ([0, 1, 2], 5, "None|abc"),
        ([0, SPECIAL, 2], None, "None|ac"),
    ],
)
def test_reasoning_is_stripped_by_id_here_and_by_text_in_the_harness(ids, think_end, expected):
    found = text_of(ids, Letters(), think_end=think_end, skip_special_tokens=True, cut=cut)
    assert found == expected
