"""Generation requests become prompts: arguments, stop strings, room, duplicates."""

import json

import pytest
import text_models

from lm_eval_exl2.encode import Encoder, load_tokenizer
from lm_eval_exl2.errors import RequestError
from lm_eval_exl2.options import parse_options
from lm_eval_exl2.prompts import PromptMaker

EOS = "<|im_end|>"


@pytest.fixture
def maker(checkpoint, tmp_path):
    """Make a PromptMaker over some generation_config.json."""

    def make(config=None, *, max_length=64, file="generation_config.json", **options):
        parsed = parse_options({"pretrained": "x", **options})
        encoder = Encoder(
            load_tokenizer(parsed, checkpoint("turns")), add_bos_token=None, prefix_token_id=None
        )
        (tmp_path / file).write_text(json.dumps(config or {}))
        return PromptMaker(encoder, parsed, tmp_path, max_length)

    return make


def only(maker, arguments, context="The quick"):
    (prompt,) = maker.make([(context, arguments)]).prompts
    return prompt


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ({}, 33),
        ({"max_gen_toks": 5, "max_new_tokens": 6}, 5),
        ({"max_new_tokens": 6, "max_tokens": 7}, 6),
        ({"max_tokens": "7", "max_completion_tokens": 8}, 7),
        ({"max_completion_tokens": 8}, 8),
    ],
)
def test_the_number_of_tokens_has_four_names_and_an_order(maker, arguments, tokens):
    assert only(maker(max_gen_toks=33), arguments).max_new_tokens == tokens


@pytest.mark.parametrize("until", [None, [], "\n", ["\n"], ["\n", EOS]])
def test_stop_strings_are_a_list_that_ends_with_the_text_of_eos(maker, until):
    found = only(maker(), {"until": until, "max_gen_toks": 5}).until
    assert found == ([EOS] if not until else ["\n", EOS])


@pytest.mark.parametrize("until", [3, [3], ("a", "b"), [None, "a"], {"a": 1}])
def test_stop_strings_that_are_none_are_refused(maker, until):
    with pytest.raises(RequestError, match=r"until=.*expected strings"):
        only(maker(), {"until": until, "max_gen_toks": 5})


def test_the_arguments_of_a_task_are_left_as_they_are(maker):
    arguments = {"until": ["\n"], "max_gen_toks": 5, "temperature": 0.0}
    only(maker(), arguments)
    assert arguments == {"until": ["\n"], "max_gen_toks": 5, "temperature": 0.0}


@pytest.mark.parametrize("arguments", [None, "max_gen_toks=5", {"max_gen_toks": "many"}])
def test_arguments_that_cannot_be_read_are_refused(maker, arguments):
    with pytest.raises(RequestError, match="generation arguments"):
        only(maker(), arguments)


@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, {0}), ({"eos_token_id": 5}, {0, 5}), ({"eos_token_id": [5, 6, None]}, {0, 5, 6})],
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_texts_end_at_every_token_listed_and_the_tokenizers_own(maker, config, expected, file):
    assert maker(config, file=file).eos_ids == expected


def test_equal_greedy_requests_are_one_prompt_and_sampled_ones_are_not(maker):
    greedy, sampled = {"max_gen_toks": 5}, {"max_gen_toks": 5, "temperature": 0.7}
    jobs = maker().make([("a", greedy), ("a", sampled), ("b", greedy), ("a", greedy)] * 2)
    assert jobs.same_as == {0: [0, 3, 4, 7], 1: [1], 2: [2, 6], 5: [5]}
    assert [prompt.index for prompt in jobs.prompts] == [0, 1, 2, 5]


def test_sampling_parameters_come_from_request_checkpoint_and_defaults_in_this_order(maker):
    made = maker({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "do_sample": True})
    assert only(made, {"max_gen_toks": 5}).sampling == {"repetition_penalty": 1.1}
    found = only(made, {"max_gen_toks": 5, "do_sample": True, "top_p": 0.8}).sampling
    assert found == {
        **{"do_sample": True, "temperature": 0.6, "top_p": 0.8, "top_k": 50},
        "repetition_penalty": 1.1,
    }
    assert only(maker(), {"max_gen_toks": 5, "temperature": 1}).sampling == {
        **{"do_sample": True, "temperature": 1.0, "top_k": 50},
    }


def test_sampling_parameters_that_are_no_numbers_are_refused(maker):
    with pytest.raises(RequestError, match="top_p='many': expected a number"):
        only(maker(), {"max_gen_toks": 5, "temperature": 0.5, "top_p": "many"})


@pytest.mark.parametrize(
    ("side", "kept"), [("left", slice(-54, None)), ("right", slice(54)), ("middle", None)]
)
def test_a_long_prompt_leaves_room_for_the_answer(maker, side, kept):
    made = maker(truncation_side=side)
    text = " one two three." * 30
    ids = made._encoder.encode_prompt(text)
    found = only(made, {"max_gen_toks": 10}, text).token_ids
    assert found == (ids[kept] if kept else ids[:27] + ids[-27:])


def test_a_total_length_counts_the_prompt(maker):
    made = maker()
    length = len(made._encoder.encode_prompt("The quick"))
    prompt = only(made, {"max_gen_toks": 5, "max_length": length + 2})
    assert prompt.max_new_tokens == 2


def test_an_empty_prompt_is_the_prefix_token(maker):
    assert only(maker(), {"max_gen_toks": 5}, "").token_ids == [0]


def test_kinds_of_text_models_are_what_these_tests_expect():
    assert text_models.KINDS["turns"].eos == EOS
