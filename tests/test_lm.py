"""The adapter's contract with the harness: every promise of `Exl2LM`, one test each.

That answers equal those of the harness's own model is the business of test_differential.
"""

from __future__ import annotations

import json
import logging

import pytest
import text_models
from asking import ask, roll, score, speak
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM, hash_args

from lm_eval_exl2.errors import CacheMismatchError, OptionError, RequestError
from lm_eval_exl2.lm import Exl2LM

WINDOW = text_models.WINDOW
REQUEST_TYPES = ("loglikelihood", "loglikelihood_rolling", "generate_until")
PAIRS = [
    *((f"Question {i}: What is it?\nAnswer:", f" {letter}") for i in range(3) for letter in "ABCD"),
    *(("It was not", text) for text in (" amused", " amused, it said.", "", " a fox")),
    *(("word " * 80, text) for text in (" one", " one two three four five six seven")),
]
PROMPTS = ["The quick", "Question: What\n", "def add(", "The lazy dog", "It was not amused " * 9]


def close_to(answers):
    """Answers up to the rounding of a forward that is batched differently."""
    return [(pytest.approx(value, abs=1e-4), is_greedy) for value, is_greedy in answers]


class Hook:
    """A response cache that remembers what it was told, and when."""

    dbdict = None

    def __init__(self, engine):
        self.told = []
        self.forwarded = []
        self._engine = engine

    def add_partial(self, kind, arguments, answer):
        self.told.append((kind, arguments, answer))
        self.forwarded.append(self._engine.counts.forwarded)


@pytest.fixture
def own(checkpoint):
    """Load a model that the test may change."""
    return lambda name, **arguments: Exl2LM(str(checkpoint(name)), device="cpu", **arguments)


# -- scores depend on their own request alone ---------------------------------------------------


def test_a_score_does_not_depend_on_its_siblings_order_or_batch(exl2):
    lm = exl2("bos")
    alone = [answer for pair in PAIRS for answer in score(lm, pair)]
    assert score(lm, *PAIRS) == close_to(alone)
    assert score(lm, *PAIRS[::-1])[::-1] == close_to(alone)
    for options in ({"batch_size": 2}, {"max_batch_tokens": 5}, {"max_batch_tokens": 37}):
        assert score(exl2("bos", **options), *PAIRS) == close_to(alone)


def test_a_truncated_context_is_as_long_as_its_own_target_allows(exl2):
    lm = exl2("bos")
    for pair in PAIRS[-2:]:
        _, context, target = lm.encoder.encode_pairs(
            [ask("loglikelihood", *pair)], disable_tqdm=True
        )[0]
        # The last token of the target is no input, so the window holds one token more.
        kept = context[-(WINDOW + 1 - len(target)) :]
        assert len(kept) < len(context)
        cut = lm._loglikelihood_tokens([(None, kept, target)], disable_tqdm=True)
        assert score(lm, pair) == close_to(cut)
        assert score(lm, *PAIRS[-2:])[PAIRS[-2:].index(pair)] == close_to(cut)[0]


def test_duplicates_are_answered_each_and_computed_once(exl2):
    lm = exl2("bos")
    before = lm.engine.counts.forwarded
    once = score(lm, *PAIRS)
    between = lm.engine.counts.forwarded
    assert score(lm, *PAIRS, *PAIRS, *PAIRS) == once * 3
    assert lm.engine.counts.forwarded - between == between - before
    before = lm.engine.counts.forwarded
    once = speak(lm, *PROMPTS)
    between = lm.engine.counts.forwarded
    assert speak(lm, *PROMPTS, *PROMPTS) == once * 2
    assert lm.engine.counts.forwarded - between == between - before


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_no_requests_get_no_answers(exl2, kind):
    assert getattr(exl2("bos"), kind)([]) == []


def test_documents_of_no_and_one_token_are_scored(exl2):
    lm = exl2("plain")
    assert len(lm.tok_encode("A")) == 1
    one = score(lm, ("", "A"))[0][0]
    assert roll(lm, "", "A", "") == [0.0, pytest.approx(one), 0.0]


def test_a_document_is_the_sum_of_its_windows(exl2):
    lm = exl2("plain")
    text = " two" * WINDOW + " three"
    ids = lm.tok_encode(text)
    assert len(ids) == WINDOW + 1
    pieces = [(None, [lm.prefix_token_id], ids[:-1]), (None, ids[:-1], ids[-1:])]
    expected = sum(value for value, _ in lm._loglikelihood_tokens(pieces, disable_tqdm=True))
    assert roll(lm, text) == [pytest.approx(expected, abs=1e-4)]


def test_truncated_requests_are_counted_in_one_warning(exl2, caplog):
    score(exl2("bos"), *PAIRS)
    warnings = [r.getMessage() for r in caplog.records if "max_length=64" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"2 of {len(PAIRS)} requests exceed")


def test_pairs_of_tokens_can_be_scored_directly(exl2):
    lm = exl2("bos")
    pair = (None, lm.tok_encode("The quick"), lm.tok_encode(" fox", add_special_tokens=False))
    assert lm._loglikelihood_tokens([pair]) == close_to(score(lm, ("The quick", " fox")))


# -- limits ---------------------------------------------------------------------------------


class Spy:
    """Notes how many tokens each forward of an engine has."""

    def __init__(self, engine, monkeypatch):
        self.sizes = []
        forward = engine.forward

        def noted(step, token_ids, positions, **options):
            self.sizes.append(len(token_ids))
            return forward(step, token_ids, positions, **options)

        monkeypatch.setattr(engine, "forward", noted)


@pytest.mark.parametrize("limit", [2, 7, 50])
def test_no_forward_has_more_tokens_than_max_batch_tokens(own, monkeypatch, limit):
    lm = own("bos", max_batch_tokens=limit, batch_size=2)
    spy = Spy(lm.engine, monkeypatch)
    score(lm, *PAIRS)
    roll(lm, *text_models.CORPUS[:7])
    speak(lm, *PROMPTS)
    assert 0 < max(spy.sizes) <= limit


@pytest.mark.parametrize("option", ["batch_size", "max_batch_size"])
def test_no_forward_has_more_sequences_than_the_batch_size(own, monkeypatch, option):
    lm = own("bos", **{option: 3})
    spy = Spy(lm.engine, monkeypatch)
    texts = speak(lm, *PROMPTS, "one", "two", max_gen_toks=8)
    prompts = 3  # waves of 3, 3 and 1
    steps = sorted(spy.sizes)[:-prompts]
    assert len(texts) == 7
    assert max(steps) <= 3
    score(lm, *PAIRS)
    assert lm.batch_sizes == {"generate_until": 3, "loglikelihood": 3}


def test_batch_sizes_report_what_shared_a_forward(own):
    lm = own("bos")
    assert (lm.batch_size, lm.batch_sizes) == ("auto", {})
    score(lm, *PAIRS[:4])
    speak(lm, *PROMPTS[:2])
    # Four letters behind one context: one row is enough, the letters are never an input.
    assert lm.batch_sizes == {"loglikelihood": 1, "generate_until": 2}
    assert own("bos", batch_size=4).batch_size == 4


def test_the_window_can_be_made_smaller(exl2):
    lm = exl2("bos", max_length=16)
    assert lm.max_length == 16
    with pytest.raises(RequestError, match="the window holds 16"):
        score(lm, ("The", " fox" * 17))


def test_tokens_the_model_does_not_know_are_refused(checkpoint, own):
    lm = own("bos", tokenizer=str(checkpoint("metaspace")))  # two more tokens than the model
    last = lm.tok_decode([lm.encoder.largest_id]).strip() or "    "
    for call in (lambda: score(lm, ("a", last)), lambda: speak(lm, "a" + last)):
        with pytest.raises(RequestError, match="use the checkpoint's own tokenizer"):
            call()


# -- generation -----------------------------------------------------------------------------


def test_a_stop_string_may_be_given_as_a_string(exl2):
    lm = exl2("plain")
    text = speak(lm, "The")[0]
    assert speak(lm, "The", until=text[4:6]) == speak(lm, "The", until=[text[4:6]]) == [text[:4]]


def test_every_listed_token_ends_a_text(tmp_path):
    said = "Q one\nA<|im_end|>"
    folder = text_models.save("turns", tmp_path, says=said)
    lm = Exl2LM(str(folder), device="cpu")
    assert speak(lm, "Q") == [" one\nA"]
    content = json.loads((folder / "generation_config.json").read_text())
    ends = [lm.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "Ċ")]
    content["eos_token_id"] = ends
    (folder / "generation_config.json").write_text(json.dumps(content))
    assert speak(Exl2LM(str(folder), device="cpu"), "Q") == [" one\n"]


def test_generation_stops_computing_at_the_stop_string(own):
    lm = own("plain")
    speak(lm, "The", max_gen_toks=40)
    whole = lm.engine.counts.forwarded
    speak(lm, "The", max_gen_toks=40, until=speak(lm, "The", max_gen_toks=2))
    assert lm.engine.counts.forwarded - whole < 10


def test_the_default_number_of_tokens_is_an_option(own):
    lm = own("turns", max_gen_toks=3)
    request = ask("generate_until", "The", {"until": []})
    assert lm.generate_until([request]) == speak(lm, "The", max_gen_toks=3)


def test_answers_that_ended_at_the_limit_are_counted_by_task(own):
    lm = own("plain")
    (start,) = speak(lm, "The", max_gen_toks=1)
    asked = {
        "cut": {"until": [], "max_gen_toks": 2},
        "stopped": {"until": [start], "max_gen_toks": 2},
    }
    lm.generate_until(
        [
            Instance("generate_until", {}, ("The", given), 0, metadata=(task, 0, 1))
            for task, given in asked.items()
        ]
    )
    assert lm.get_model_info()["generations_at_limit"] == {"None": 1, "cut": 1}


def test_sampled_texts_depend_on_seed_prompt_and_repeat_alone(own):
    sampled = {"do_sample": True, "temperature": 1.5}
    lm = own("bos")
    texts = speak(lm, *PROMPTS, **sampled)
    assert speak(lm, *PROMPTS[::-1], **sampled)[::-1] == texts
    assert speak(own("bos", batch_size=2, max_batch_tokens=9), *PROMPTS, **sampled) == texts
    assert speak(lm, PROMPTS[2], **sampled) == texts[2:3]
    assert speak(own("bos", seed=7), *PROMPTS, **sampled) != texts
    repeats = speak(lm, *[PROMPTS[0]] * 4, **sampled)
    assert repeats[0] == texts[0]
    assert len(set(repeats)) == 4


def test_seed_zero_is_a_seed(own):
    sampled = {"do_sample": True, "temperature": 1.5}
    texts = speak(own("bos", seed=0), *PROMPTS, **sampled)
    assert speak(own("bos", seed=0), *PROMPTS, **sampled) == texts
    assert speak(own("bos"), *PROMPTS, **sampled) != texts


def test_one_object_asked_several_times_is_sampled_several_times(exl2):
    request = ask("generate_until", "The", {"until": [], "max_gen_toks": 8, "temperature": 1.5})
    assert len(set(exl2("bos").generate_until([request] * 4, disable_tqdm=True))) == 4


@pytest.mark.parametrize(("side", "kept"), [("left", "lazy dog"), ("right", "The quick")])
def test_a_prompt_without_room_is_cut_from_the_side_asked_for(exl2, caplog, side, kept):
    lm = exl2("plain", truncation_side=side)
    prompt = "The quick" + " fox" * 80 + " lazy dog"
    assert speak(lm, prompt, max_gen_toks=10)
    assert "1 of 1 prompts leave no room for max_gen_toks in max_length=64" in caplog.text
    assert f"were cut from the {side}" in caplog.text
    ids = lm.tok_encode(prompt)
    cut = ids[-(WINDOW - 10) :] if side == "left" else ids[: WINDOW - 10]
    assert kept in lm.tok_decode(cut)
    assert speak(lm, lm.tok_decode(cut), max_gen_toks=10) == speak(lm, prompt, max_gen_toks=10)


def test_special_tokens_can_be_shown(tmp_path):
    folder = str(text_models.save("bos", tmp_path, says="Xhm? so<|/think|> two! three<|end|>"))
    assert speak(Exl2LM(folder, device="cpu"), "X") == ["hm? so two!"]
    shown = Exl2LM(folder, device="cpu", skip_special_tokens=False)
    assert speak(shown, "X") == ["hm? so<|/think|> two!"]
    assert speak(shown, "X", max_gen_toks=20) == ["hm? so<|/think|> two! three"]


# -- chat -----------------------------------------------------------------------------------


def test_thinking_is_refused_for_log_likelihoods_and_needs_its_end(own):
    lm = own("bos", enable_thinking=True, think_end_token="<|/think|>")
    with pytest.raises(RequestError, match="enable_thinking=True cannot be used"):
        score(lm, ("a", "b"))
    assert own("bos", enable_thinking=False).loglikelihood([ask("loglikelihood", "a", "b")])
    with pytest.raises(OptionError, match="needs think_end_token"):
        own("bos", enable_thinking=True)


def test_rendering_without_a_template_is_an_error_of_one_line(exl2):
    with pytest.raises(OptionError, match="no chat template") as caught:
        exl2("bos").apply_chat_template([{"role": "user", "content": "hm"}])
    assert "\n" not in str(caught.value)


def test_thinking_and_extra_arguments_reach_the_template(tmp_path):
    template = "{{ enable_thinking }} {{ mood }}"
    folder = str(text_models.save("turns", tmp_path, chat_template=template))
    history = [{"role": "user", "content": "hm"}]
    lm = Exl2LM(folder, device="cpu", chat_template_args='{"mood": "calm"}', enable_thinking=False)
    assert lm.apply_chat_template(history) == "False calm"
    assert Exl2LM(folder, device="cpu").apply_chat_template(history) == " "


def test_the_tokenizer_name_changes_with_everything_that_changes_a_request(tmp_path, own):
    folder = str(text_models.save("turns", tmp_path, chat_template={"default": "d", "terse": "t"}))
    names = [
        Exl2LM(folder, device="cpu", **options).tokenizer_name
        for options in ({}, {"add_bos_token": False}, {"chat_template_args": {"a": 1}})
    ]
    terse = Exl2LM(folder, device="cpu")
    terse.chat_template("terse")
    names += [terse.tokenizer_name, own("bos").tokenizer_name, own("metaspace").tokenizer_name]
    assert len(set(names)) == len(names)
    assert names[0] == Exl2LM(folder, device="cpu").tokenizer_name
    assert not any("/" in name for name in names)


# -- the response cache ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bos", "plain"])
def test_finished_requests_are_cached_under_their_own_arguments_as_they_come(own, kind):
    lm = own(kind, max_batch_tokens=20)
    hook = Hook(lm.engine)
    lm.set_cache_hook(hook)
    arguments = {"until": ["\n"], "max_gen_toks": 4}
    turned = dict(reversed(arguments.items()))  # the same request, but another key of the cache
    asked = [
        *(ask("loglikelihood", *pair) for pair in PAIRS),
        *(ask("loglikelihood_rolling", line * 5) for line in ("", *text_models.CORPUS[:3])),
        *(ask("generate_until", prompt, arguments) for prompt in (*PROMPTS, PROMPTS[0])),
        ask("generate_until", PROMPTS[0], turned),
    ]
    for request_type in REQUEST_TYPES:
        requests = [request for request in asked if request.request_type == request_type]
        answers = getattr(lm, request_type)(requests)
        expected = {
            hash_args(request_type, request.args): answer
            for request, answer in zip(requests, answers, strict=True)
        }
        told = [entry for entry in hook.told if entry[0] == request_type]
        assert len(told) == len(requests)
        assert {hash_args(request_type, a): answer for _, a, answer in told} == expected
    assert len(set(hook.forwarded)) >= 8  # not all at the end


def open_cache(lm, path):
    return CachingLM(lm, str(path / "cache.db"))


def test_cached_answers_are_served_without_computing(own, tmp_path):
    lm = own("bos")
    cached = open_cache(lm, tmp_path)
    requests = [ask("loglikelihood", *pair) for pair in PAIRS]
    first = cached.loglikelihood(requests)
    forwarded = lm.engine.counts.forwarded
    assert cached.loglikelihood(requests) == first == close_to(score(own("bos"), *PAIRS))
    again = open_cache(own("bos"), tmp_path)
    assert again.loglikelihood(requests) == first
    assert lm.engine.counts.forwarded == forwarded
    assert again.lm.engine.counts.forwarded == 0


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("turns", {}, "checkpoint"),
        ("bos", {"dtype": "bfloat16"}, "dtype float32, but this run has bfloat16"),
        ("bos", {"max_length": 32}, "max_length 64, but this run has 32"),
        ("bos", {"seed": 0}, "seed 1234, but this run has 0"),
        ("bos", {"add_bos_token": False}, "tokenizer"),
    ],
)
def test_a_cache_of_another_model_is_refused(own, tmp_path, kind, options, named):
    open_cache(own("bos"), tmp_path)
    with pytest.raises(CacheMismatchError, match=f"was made with {named}"):
        open_cache(own(kind, **options), tmp_path)
    open_cache(own("bos", batch_size=3), tmp_path)  # changes no answer


def test_a_cache_of_unknown_origin_is_refused(own, tmp_path):
    from sqlitedict import SqliteDict

    with SqliteDict(str(tmp_path / "cache.db"), autocommit=True) as cache:
        cache["0"] = (0.0, True)
    with pytest.raises(CacheMismatchError, match="unknown origin"):
        open_cache(own("bos"), tmp_path)


# -- surroundings ---------------------------------------------------------------------------


def test_model_info_is_json_and_names_what_was_used(exl2):
    info = exl2("bos").get_model_info()
    assert json.loads(json.dumps(info)) == info
    assert info["engine"] == "torch"
    assert info["model_dtype"] == "float32"
    assert info["max_length"] == WINDOW
    assert len(info["checkpoint_digest"]) == 64


def test_several_processes_are_refused(checkpoint, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="2 processes"):
        Exl2LM(str(checkpoint("bos")), device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    lm = Exl2LM(str(checkpoint("bos")), device="cpu")
    assert (lm.rank, lm.world_size) == (0, 1)


def test_an_unknown_argument_is_refused_by_name(checkpoint):
    with pytest.raises(OptionError, match="did you mean max_length"):
        Exl2LM(str(checkpoint("bos")), max_lenght=5)


def test_a_tokenizer_can_be_given_as_an_object(checkpoint, exl2):
    tokenizer = exl2("bos").tokenizer
    lm = Exl2LM(pretrained=str(checkpoint("bos")), device="cpu", tokenizer=tokenizer)
    assert lm.tokenizer is tokenizer


def test_progress_bars_can_be_switched_off(own, capsys):
    for lm in (own("bos", disable_tqdm=True), own("bos")):
        requests = [ask("loglikelihood", *pair) for pair in PAIRS]
        lm.loglikelihood(requests, disable_tqdm=lm.options.disable_tqdm)
        lm.generate_until([ask("generate_until", "The", {"max_gen_toks": 2})])
        shown = capsys.readouterr().err
        assert ("Running" in shown) == (not lm.options.disable_tqdm)


# -- whole evaluations ----------------------------------------------------------------------


def tasks():
    """Three small tasks, one of each kind, whose documents are made on the spot."""
    from datasets import Dataset

    documents = [
        {
            "question": f"Question {number}: What is {number} + 1?",
            "choices": [f"{number}", f"{number + 1}", "a fox"],
            "text": text_models.CORPUS[number] * (number + 1),
        }
        for number in range(7)
    ]
    common = {
        "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
        "test_split": "test",
        "doc_to_text": "{{question}}\nAnswer:",
    }
    choice = {
        **{"task": "tiny_choice", "output_type": "multiple_choice", "doc_to_choice": "choices"},
        **{"doc_to_target": 1, "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
    }
    text = {
        **{"task": "tiny_text", "output_type": "loglikelihood_rolling", "doc_to_text": ""},
        **{"doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]},
    }
    speech = {
        **{"task": "tiny_speech", "output_type": "generate_until", "doc_to_target": "{{text}}"},
        **{"generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 9}},
        **{"metric_list": [{"metric": "exact_match"}]},
    }
    return [common | task for task in (choice, text, speech)]


@pytest.mark.parametrize("options", [{}, {"apply_chat_template": True, "num_fewshot": 1}])
def test_a_whole_evaluation_gives_what_hf_gives(tmp_path, monkeypatch, caplog, options):
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # seconds of subprocesses
    caplog.set_level(logging.ERROR)
    folder = str(text_models.save("turns", tmp_path, chat_template=text_models.CHAT))
    found = {}
    for model, given in (("hf", {"dtype": "float32"}), ("exl2", {})):
        found[model] = evaluator.simple_evaluate(
            model=model,
            model_args={"pretrained": folder, **given},
            device="cpu",
            tasks=tasks(),
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
            **options,
        )
    for task, metrics in found["hf"]["results"].items():
        for name, value in metrics.items():
            is_number = isinstance(value, float)
            expected = pytest.approx(value, rel=1e-5) if is_number else value
            assert found["exl2"]["results"][task][name] == expected, (task, name)
    said = [[s["filtered_resps"] for s in r["samples"]["tiny_speech"]] for r in found.values()]
    assert said[0] == said[1]
    assert len(set(map(str, said[0]))) > 3
    assert found["exl2"]["config"]["engine"] == "torch"
    assert found["exl2"]["config"]["batch_sizes"]
    assert [s["prompt_hash"] for s in found["hf"]["samples"]["tiny_choice"]] == [
        s["prompt_hash"] for s in found["exl2"]["samples"]["tiny_choice"]
    ]
