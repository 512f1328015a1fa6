"""`exl2` answers as the harness's `hf` model does, and differs only where the table says so.

The oracle is the harness's own class on the same unquantized directories. What cannot be compared
or is meant to differ is listed in deliberate_differences.md, with the name of its test here; each
of these tests shows what `hf` does and what `exl2` does instead.
"""

import random
import re
from pathlib import Path

import pytest
import text_models
from asking import roll, score, speak
from differential_cases import CONFIGURATIONS, Writer, compare, load_pair
from lm_eval.models.huggingface import HFLM

from lm_eval_exl2.errors import OptionError, RequestError
from lm_eval_exl2.lm import Exl2LM

TABLE = Path(__file__).with_name("deliberate_differences.md")
CPU = {"device": "cpu", "dtype": "float32"}
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
]


def close_to(answers):
    return [(pytest.approx(value, abs=1e-4), is_greedy) for value, is_greedy in answers]


@pytest.fixture
def both(tmp_path):
    """Save a model and load it with both classes: (hf, exl2)."""

    def load(name, *, generation=None, says=None, chat_template=None, **arguments):
        folder = str(
            text_models.save(
                name, tmp_path, generation=generation, says=says, chat_template=chat_template
            )
        )
        return HFLM(pretrained=folder, **CPU, **arguments), Exl2LM(folder, **CPU, **arguments)

    return load


# -- the same answers -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [35, pytest.param(210, marks=pytest.mark.slow)])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: f"{c[0]}-{c[2]}-{c[3]}")
def test_generated_requests_are_answered_as_by_hf(configuration, size):
    comparison = compare(configuration, size=size, seed=0)
    assert comparison.disagreements == []
    assert sum(comparison.requests.values()) >= 0.95 * size  # of 10 configurations, slow: 2,000
    assert len(comparison.requests) == 3
    assert min(comparison.requests.values()) >= size // 7


def test_a_single_wrong_answer_is_a_disagreement(monkeypatch):
    right = Exl2LM.loglikelihood

    def wrong(self, requests, **options):
        answers = right(self, requests, **options)
        return [(answers[0][0] - 0.01, answers[0][1]), *answers[1:]]

    monkeypatch.setattr(Exl2LM, "loglikelihood", wrong)
    assert len(compare(CONFIGURATIONS[0], size=40, seed=0).disagreements) == 1


@pytest.mark.parametrize("configuration", CONFIGURATIONS[::3], ids=lambda c: f"{c[0]}-{c[2]}")
def test_strings_are_encoded_and_decoded_as_by_hf(configuration, tmp_path):
    pair = load_pair(configuration, tmp_path)
    writer = Writer(pair, random.Random(3))
    for _ in range(100):
        text = writer.draw.choice((writer.text, writer.long_text))()
        for special in (None, True, False):
            assert pair.exl2.tok_encode(text, special) == pair.hf.tok_encode(text, special)
        ids = pair.hf.tok_encode(text)
        assert pair.exl2.tok_encode(text, left_truncate_len=3) == ids[-3:]
        assert pair.exl2.tok_decode(ids) == pair.hf.tok_decode(ids)
        if ids:
            prompt = pair.hf.tok_batch_encode([text])[0][0].tolist()
            assert pair.exl2.encoder.encode_prompt(text) == prompt


@pytest.mark.parametrize("template", [text_models.CHAT, text_models.STRICT_CHAT])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_templates_are_rendered_as_by_hf(both, template, add_generation_prompt):
    # The second template refuses the system message; both models then leave it out.
    hf, exl2 = both("turns", chat_template=template, chat_template_args={"extra": 1})
    found = exl2.apply_chat_template(HISTORY, add_generation_prompt)
    assert found == hf.apply_chat_template(HISTORY, add_generation_prompt)
    assert ("Be brief" in found) == (template == text_models.CHAT)


@pytest.mark.parametrize("marker", ["? so", 6, "6"])
def test_reasoning_is_stripped_as_by_hf(both, marker):
    text = "Xhm? so two! three<|end|>"
    hf, exl2 = both("bos", says=text, think_end_token=_marker(marker, text))
    assert speak(exl2, "X") == speak(hf, "X") != ["hm? so two! three"]
    assert speak(exl2, "X", until=["!"]) == speak(hf, "X", until=["!"]) == ["two"]
    assert speak(exl2, "X", max_gen_toks=2) == speak(hf, "X", max_gen_toks=2) == ["hm"]


def _marker(marker, text):
    """Replace a number by the id of the token at that place of the text."""
    if marker == "? so":
        return marker
    tokenizer = text_models.train_tokenizer(text_models.KINDS["bos"])
    token_id = tokenizer.encode(text, add_special_tokens=False).ids[int(marker) - 1]
    return type(marker)(token_id)


def test_empty_documents_have_probability_one_where_there_is_no_bos(hf, exl2):
    assert roll(exl2("plain"), "", "") == roll(hf("plain"), "", "") == [0.0, 0.0]


# -- deliberate differences -----------------------------------------------------------------


def test_every_deliberate_difference_names_a_test_that_exists():
    from_hf, from_exllamav2 = TABLE.read_text().split("## Engine exllamav2")
    own = Path(__file__).read_text()
    start = own.index("# -- deliberate differences")
    assert set(re.findall(r"`(test_\w+)`", from_hf)) == set(
        re.findall(r"def (test_\w+)", own[start:])
    ) - {"test_every_deliberate_difference_names_a_test_that_exists"}
    other = Path(__file__).with_name("test_exllamav2_engine.py").read_text()
    named = set(re.findall(r"`(test_\w+)`", from_exllamav2))
    assert named <= set(re.findall(r"def (test_\w+)", other))


def test_an_empty_continuation_has_probability_one(hf, exl2):
    with pytest.raises(AssertionError):
        score(hf("bos"), ("The quick", ""))
    with pytest.raises(IndexError):
        score(hf("bos"), ("", ""))
    assert score(exl2("bos"), ("The quick", ""), ("", "")) == [(0.0, True)] * 2


def test_a_prefix_token_after_an_empty_context_has_probability_one(hf, exl2):
    with pytest.raises(AssertionError):
        score(hf("bos"), ("", "<|begin|>"))
    assert score(exl2("bos"), ("", "<|begin|>")) == [(0.0, True)]
    assert score(exl2("plain"), ("", "<|endoftext|>")) == [(0.0, True)]


def test_a_continuation_that_merges_into_its_context_scores_zero_with_a_warning(hf, exl2, caplog):
    with pytest.raises(AssertionError):
        score(hf("plain"), ("Th", "e"))
    assert score(exl2("plain"), ("Th", "e"), ("The", " fox"))[0] == (0.0, True)
    assert "1 of 2 continuations merge into the last token of their context" in caplog.text


def test_a_context_without_tokens_is_replaced_by_the_prefix_token(hf, exl2):
    with pytest.raises(AssertionError):
        score(hf("plain"), ("  ", "fox"))
    # Trailing spaces of a context belong to the continuation, so nothing else is left of it.
    assert score(exl2("plain"), ("  ", "fox")) == score(exl2("plain"), ("", "  fox"))
    assert score(hf("bos"), ("  ", "fox")) == close_to(score(exl2("bos"), ("  ", "fox")))


def test_a_continuation_longer_than_the_window_is_an_error_of_one_line(hf, exl2):
    long = " fox" * (text_models.WINDOW + 1)
    with pytest.raises(AssertionError):
        score(hf("plain"), ("The", long))
    with pytest.raises(RequestError) as caught:
        score(exl2("plain"), ("The", long))
    assert "window holds 64" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_tokens_split_at_different_places_are_scored_independently(hf, exl2):
    one, other = ("The", " quick brown fox"), ("The quick", " brown fox")
    alone = score(hf("bos"), one) + score(hf("bos"), other)
    together = score(hf("bos"), one, other)
    assert together != close_to(alone)  # its cache reads the wrong positions for the shorter one
    assert score(exl2("bos"), one, other) == close_to(alone)


def test_every_prompt_of_a_batch_has_its_own_bos_rule(checkpoint, exl2):
    prompts = ("<|begin|>The quick brown fox jumps", "Question: What")
    one = HFLM(pretrained=str(checkpoint("bos")), batch_size=1, **CPU)
    two = HFLM(pretrained=str(checkpoint("bos")), batch_size=2, **CPU)
    assert speak(two, *prompts) != speak(one, *prompts)
    assert speak(exl2("bos", batch_size=2), *prompts) == speak(one, *prompts)


def test_generated_text_keeps_its_leading_space(both):
    hf, exl2 = both("metaspace", says="X two\n three</s>")
    assert speak(hf, "X") == ["two\n three"]
    assert speak(exl2, "X") == [" two\n three"]
    assert speak(exl2, "X", until=" ") == [""]


def test_stop_strings_inside_reasoning_do_not_count(both):
    text = "Xhm? so two! three<|end|>"
    hf, exl2 = both("bos", says=text, think_end_token=" so")
    assert speak(hf, "X", until=["?", "!"]) == ["hm"]
    assert speak(exl2, "X", until=["?", "!"]) == ["two"]


def test_a_special_token_can_end_the_reasoning(both):
    text = "Xhm? so<|/think|> two! three<|end|>"
    hf, exl2 = both("bos", says=text, think_end_token="<|/think|>")
    assert speak(hf, "X", max_gen_toks=9) == ["hm? so two! three"]
    assert speak(exl2, "X", max_gen_toks=9) == ["two! three"]
    assert speak(exl2, "X", until=["?", "!"]) == ["two"]


def test_an_unknown_token_that_ends_the_reasoning_is_looked_for_as_text(exl2):
    assert exl2("metaspace", think_end_token="</think>").think_end == "</think>"


def test_a_template_chosen_by_name_is_rendered(both):
    hf, exl2 = both("turns", chat_template={"default": "default", "terse": "terse"})
    assert hf.chat_template("terse") == exl2.chat_template("terse") == "terse"
    assert hf.apply_chat_template(HISTORY) == "default"
    assert exl2.apply_chat_template(HISTORY) == "terse"


def test_a_missing_chat_template_is_an_error_when_it_is_selected(hf, exl2):
    assert hf("turns").chat_template(True) is None
    with pytest.raises(OptionError, match="no chat template"):
        exl2("turns").chat_template(True)


def test_an_empty_prompt_is_replaced_by_the_prefix_token(hf, exl2):
    with pytest.raises(RuntimeError):
        speak(hf("plain"), "")
    assert speak(exl2("plain"), "") == speak(exl2("plain"), "<|endoftext|>")


def test_until_none_means_no_stop_strings(hf, exl2):
    with pytest.raises(ValueError, match="text input"):
        speak(hf("plain"), "The", until=None)
    assert speak(exl2("plain"), "The", until=None) == speak(exl2("plain"), "The", until=[])


def test_an_empty_stop_string_stops_nothing(hf, exl2):
    whole = speak(exl2("plain"), "The", until=[])
    assert speak(hf("plain"), "The", until="") != whole  # it stops after one token
    assert speak(exl2("plain"), "The", until="") == whole
    assert speak(exl2("plain"), "The", until=["", whole[0][5:7]]) == [whole[0][:5]]


def test_no_tokens_asked_for_gives_an_empty_text(hf, exl2):
    with pytest.raises(ValueError, match="Input length"):
        speak(hf("plain"), "The", max_gen_toks=0)
    assert speak(exl2("plain"), "The", max_gen_toks=0) == [""]
    assert speak(exl2("plain"), "The quick brown fox", max_gen_toks=8, max_length=2) == [""]


@pytest.mark.parametrize("tokens", [64, 65, -1])
def test_no_room_for_a_prompt_is_an_error_of_one_line(hf, exl2, tokens):
    with pytest.raises((AssertionError, ValueError)):
        speak(hf("plain"), "The", max_gen_toks=tokens)
    with pytest.raises(RequestError, match=r"max_gen_toks=.* leaves no room") as caught:
        speak(exl2("plain"), "The", max_gen_toks=tokens)
    assert "\n" not in str(caught.value)


def test_sampling_without_a_temperature_uses_the_checkpoints_or_one(both):
    hf, exl2 = both("turns", generation={"do_sample": True, "temperature": 0.5})
    with pytest.raises(ValueError, match="temperature"):
        speak(hf, "The", do_sample=True)
    assert speak(exl2, "The", do_sample=True) == speak(exl2, "The", do_sample=True, temperature=0.5)


def test_sampling_at_temperature_zero_is_greedy(hf, exl2):
    with pytest.raises(ValueError, match="temperature"):
        speak(hf("plain"), "The", do_sample=True, temperature=0.0)
    found = speak(exl2("plain"), "The", do_sample=True, temperature=0.0)
    assert found == speak(exl2("plain"), "The")


def test_whole_numbers_are_taken_for_sampling_parameters(hf, exl2):
    asked = {"do_sample": True, "temperature": 2, "top_k": 1, "repetition_penalty": 3}
    with pytest.raises(ValueError, match="float"):
        speak(hf("plain"), "The", **asked)
    exact = asked | {"temperature": 2.0, "repetition_penalty": 3.0}
    assert speak(exl2("plain"), "The", **asked) == speak(hf("plain"), "The", **exact)


def test_sampled_texts_come_from_streams_of_their_own(hf, exl2):
    prompts = ["The", "Question", "The"]
    found = speak(exl2("plain"), *prompts, temperature=1.0)
    assert speak(exl2("plain"), *prompts[:2], temperature=1.0) == found[:2]
    assert found[0] != found[2]  # a repeat is another sample
    assert speak(hf("plain"), *prompts, temperature=1.0) != speak(
        hf("plain"), *prompts, temperature=1.0
    )  # there a second run gives other texts


@pytest.mark.parametrize("arguments", [{"num_beams": 2}, {"bad_words_ids": [[3]]}, {"typo": 1}])
def test_generation_arguments_that_are_not_supported_are_refused(exl2, arguments):
    with pytest.raises(RequestError, match=f"{next(iter(arguments))}=.* is not supported"):
        speak(exl2("plain"), "The", **arguments)


def test_arguments_that_ask_for_the_usual_are_taken(hf, exl2):
    with pytest.raises(TypeError):
        speak(hf("plain"), "The", use_cache=True)
    assert speak(exl2("plain"), "The", use_cache=True) == speak(exl2("plain"), "The")


def test_the_tokens_a_task_asks_for_win_over_the_checkpoints_default(both):
    hf, exl2 = both("turns", says="Q one\nA<|im_end|>", generation={"max_new_tokens": 2})
    assert speak(hf, "Q") == [" one"]
    assert speak(exl2, "Q") == [" one\nA"]


def test_settings_of_the_checkpoint_that_are_not_supported_are_warned_of(both, caplog):
    hf, exl2 = both("turns", generation={"forced_eos_token_id": 0, "num_beams": 1})
    assert speak(hf, "The") != speak(exl2, "The")
    assert "forced_eos_token_id=0 of the checkpoint's generation_config.json" in caplog.text
    assert "num_beams" not in caplog.text


def test_a_minimum_of_tokens_also_holds_back_the_tokenizers_eos(both):
    hf, exl2 = both("bos", says="X one<|end|>", generation={"eos_token_id": 7})
    assert speak(hf, "X", min_new_tokens=6) == [" one"]
    assert exl2.engine.counts.forwarded == 0
    assert len(speak(exl2, "X", min_new_tokens=6)[0]) > len(" one")
