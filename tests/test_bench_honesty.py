"""Each cheat is caught by the check that is made for it, and an honest run by none."""

import dataclasses

import pytest
from bench_cases import greedy, model_facts, timed, told

from lm_eval_exl2.bench import honesty
from lm_eval_exl2.bench.data import BenchPrompt
from lm_eval_exl2.bench.profiles import PROFILES
from lm_eval_exl2.bench.records import UNFINISHED
from lm_eval_exl2.engines.scripted import ScriptedEngine

END = frozenset({7})
REQUESTS = [timed([1.0, 2.0, 3.0], ids=(3, 4, 7)), timed([2.0, 4.0], ids=(5, 6), number=1)]


def test_an_honest_first_token_passes_and_a_made_up_one_does_not():
    honest = [told(request) for request in REQUESTS]
    assert honesty.check_first_token(REQUESTS, honest).passed
    made_up = [told(REQUESTS[0], first_ids=(4,)), honest[1]]
    found = honesty.check_first_token(REQUESTS, made_up)
    assert (found.passed, found.found[:14]) == (False, "1 other tokens")


@pytest.mark.parametrize("moment", [0.99, 0.2, None])
def test_a_first_token_reported_before_there_is_one_is_caught(moment):
    early = [told(REQUESTS[0], first_token_s=moment), told(REQUESTS[1])]
    found = honesty.check_first_token(REQUESTS, early)
    assert not found.passed
    assert "1 reported before the engine had them" in found.found


def test_offline_where_loadgen_keeps_no_first_tokens_their_times_are_compared():
    kept = [told(request, first_ids=None) for request in REQUESTS]
    assert honesty.check_first_token(REQUESTS, kept).passed
    assert not honesty.check_first_token(
        REQUESTS, [told(REQUESTS[0], first_ids=None, first_token_s=0.5), kept[1]]
    ).passed


@pytest.mark.parametrize(
    "changes",
    [
        {"token_count": 4},
        {"token_count": 2},
        {"token_ids": (3, 4, 4)},
        {"token_ids": (3, 4, 7, 7), "token_count": 4},
    ],
)
def test_a_count_or_text_other_than_the_output_is_caught(changes):
    assert honesty.check_counts(REQUESTS, [told(request) for request in REQUESTS]).passed
    assert not honesty.check_counts(
        REQUESTS, [told(REQUESTS[0], **changes), told(REQUESTS[1])]
    ).passed


@pytest.mark.parametrize(
    ("ids", "passed"),
    [
        ((3, 4, 7), True),
        ((3, 4, 5), True),  # at the limit
        ((7,), True),
        ((3, 7, 7), False),  # a second one
        ((7, 3, 4), False),  # goes on
        ((3, 4), False),  # neither end nor limit
    ],
)
def test_a_text_ends_once(ids, passed):
    request = timed(range(len(ids)), ids=ids)
    assert honesty.check_end([request], end_ids=END, max_new_tokens=3).passed == passed


def test_a_text_that_was_cut_off_need_not_end():
    cut = timed([1.0], ids=(3,), outcome=UNFINISHED)
    assert honesty.check_end([cut], end_ids=END, max_new_tokens=3).passed


def test_counts_are_held_against_the_tokenizer():
    def check(requests):
        return honesty.check_tokenizer(
            requests,
            decode=lambda ids: "".join("ab"[token % 2] for token in ids),
            encode=lambda text: [ord(letter) for letter in text],
            largest_id=7,
        )

    assert check(REQUESTS) == (
        "token counts against the tokenizer",
        True,
        "5 tokens produced, their text has 5",
    )
    assert not check([timed([1.0], ids=(8,))]).passed  # no token of this tokenizer


def test_tokens_without_text_do_not_count_as_tokens():
    found = honesty.check_tokenizer(
        REQUESTS, decode=lambda ids: "a" * (len(ids) // 3), encode=list, largest_id=7
    )
    assert (found.passed, found.found) == (False, "5 tokens produced, their text has 1")


def test_taking_queries_out_of_order_is_caught():
    in_order = [timed([1.0 + n, 9.0], number=n, started=n) for n in range(4)]
    assert honesty.check_order(in_order, rows=1).passed
    swapped = [timed([1.0 + n, 9.0], number=n, started=n ^ 1) for n in range(4)]
    assert not honesty.check_order(swapped, rows=4).passed


def test_answering_queries_out_of_order_is_caught_beyond_a_batch():
    moments = [4.0, 3.0, 2.0, 1.0]  # the last first
    requests = [timed([moment, 9.0], number=n, started=n) for n, moment in enumerate(moments)]
    assert honesty.check_order(requests, rows=4).passed  # one forward for all of them
    found = honesty.check_order(requests, rows=3)
    assert not found.passed
    assert "up to 3 places" in found.found


def test_an_answer_to_another_prompt_is_caught():
    honest = [told(request) for request in REQUESTS]
    assert honesty.check_prompts(REQUESTS, honest).passed
    assert not honesty.check_prompts(REQUESTS, [honest[1], honest[0]]).passed


def test_greedy_text_passes_and_one_other_token_does_not():
    prompts = [BenchPrompt(0, [1, 2]), BenchPrompt(1, [3])]
    ids = [greedy(prompt.token_ids, 5) for prompt in prompts]
    honest = [timed(range(5), ids=each, number=n) for n, each in enumerate(ids)]
    engine = ScriptedEngine()
    assert honesty.check_greedy(honest, prompts, engine).passed
    ids[1][0] = (ids[1][0] + 1) % 8
    sampled = [timed(range(5), ids=each, number=n) for n, each in enumerate(ids)]
    assert not honesty.check_greedy(sampled, prompts, engine).passed


def test_nothing_to_look_at_is_no_proof_of_greedy_decoding():
    assert not honesty.check_greedy([], [], ScriptedEngine()).passed


def test_another_configuration_than_the_scored_one_is_named():
    timed_facts = {"checkpoint_digest": "a", "engine": "torch", "model_dtype": "float32"}
    assert honesty.check_configuration(timed_facts, dict(timed_facts, seed=5)).passed
    found = honesty.check_configuration(timed_facts, timed_facts | {"model_dtype": "float16"})
    assert (found.passed, found.found) == (
        False,
        "model_dtype 'float16' when scored, 'float32' now",
    )
    assert not honesty.check_configuration(timed_facts, {}).passed
    penalized = timed_facts | {"penalties_left_out": {"repetition_penalty": 1.1}}
    found = honesty.check_configuration(penalized, timed_facts)
    assert (found.passed, "repetition_penalty=1.1" in found.found) == (False, True)


def style(**changes):
    asked = {
        "prompts": 13_368,
        "max_new_tokens": 128,
        "duration_s": 600.0,
        "is_sharing": False,
    }
    facts = model_facts(**{k: changes.pop(k) for k in list(changes) if k not in asked})
    return honesty.style(PROFILES["llama3.1-8b"], facts, **asked | changes)


def test_the_references_model_and_data_are_closed_style_on_trust():
    assert style() == (
        "closed-style",
        ["that weights and prompts are the reference's is taken on trust"],
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": 16}, "16 layers"),
        ({"kind": "exl2"}, "quantized (exl2)"),
        ({"prompts": 100}, "100 prompts"),
        ({"max_new_tokens": 32}, "max_gen_toks is 32"),
        ({"duration_s": 60.0}, "60 s, not 600 s"),
        ({"is_sharing": True}, "computed once"),
    ],
)
def test_anything_else_is_open_style_and_says_why(changes, reason):
    name, reasons = style(**changes)
    assert name == "open-style"
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_profiles_have_the_published_limits():
    limits = {name: (each.ttft_s, each.tpot_s) for name, each in PROFILES.items()}
    assert limits == {
        "llama2-70b": (2.0, 0.2),
        "llama2-70b-interactive": (0.45, 0.04),
        "llama3.1-8b": (2.0, 0.1),
        "llama3.1-8b-interactive": (0.5, 0.03),
    }


def test_long_texts_are_looked_at_as_far_as_a_forward_reaches():
    prompt = BenchPrompt(0, [1, 2])
    ids = greedy(prompt.token_ids, 6)
    asked = []

    class Small(ScriptedEngine):
        def __init__(self):
            super().__init__()
            self.info = dataclasses.replace(self.info, max_batch_tokens=5)

        def score_naively(self, token_ids, targets):
            asked.append((len(token_ids), targets))
            return super().score_naively(token_ids, targets)

    assert honesty.check_greedy([timed(range(6), ids=ids)], [prompt], Small()).passed
    assert asked == [(5, 3)]
