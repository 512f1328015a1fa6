"""WikiText perplexity through the harness, against plain loops over the model's logits."""

import hashlib
import importlib
import json
import math
import operator
import sys
import types
from functools import cache
from importlib import metadata as packages
from pathlib import Path

import lm_eval
import pandas
import pytest
import text_models
import torch
import transformers
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from perplexity_loops import LOOPS, gptq

from lm_eval_exl2.errors import OptionError, RequestError, ScoreError
from lm_eval_exl2.tasks.model_files import load_model_files
from lm_eval_exl2.tasks.token_requests import TokenRequest, WholeIds, request_tokens
from lm_eval_exl2.tasks.wikitext import cut, read_lines
from lm_eval_exl2.tasks.windows import PROTOCOLS, choose_sizes, perplexity_stderr

TASKS = Path(__file__).parents[1] / "task_configs" / "wikitext2"
SENTENCES = [f" {' '.join(line.split())} \n" for line in text_models.CORPUS[:7]]
LINES = ["", " = Robert = \n", "", *SENTENCES, ""] * 3
RAW = "".join(line or " \n" for line in LINES)
WINDOW = 32


@pytest.fixture
def file(tmp_path):
    written = tmp_path / "wiki.test.raw"
    written.write_text(RAW, encoding="utf-8")
    return str(written)


def manage(folder, file, **metadata):
    known = {"pretrained": str(folder), "dataset_file": file, "window": WINDOW, **metadata}
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata=known)


def load(folder, file, **metadata):
    return manage(folder, file, **metadata).load(["exl2_wikitext2_ppl"])


def evaluate(
    model, folder, file, *, limit=None, predict_only=False, cache_requests=False, **metadata
):
    found = lm_eval.simple_evaluate(
        model,
        tasks=["exl2_wikitext2_ppl"],
        task_manager=manage(folder, file, **metadata),
        cache_requests=cache_requests,
        limit=limit,
        predict_only=predict_only,
    )
    (results,) = found["results"].values()
    (config,) = found["configs"].values()
    (samples,) = found["samples"].values()
    return {name.removesuffix(",none"): value for name, value in results.items()}, config, samples


@cache
def read(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), tokenizer


CASES = [
    ("gptq", {}),
    ("exllamav3-chart", {"stride": 8, "rows": 20}),
    ("exllamav2-ed", {"rows": 4}),
    ("exllamav2-sp", {"stride": 8, "rows": None}),
    ("sliding", {"stride": 8, "rows": None}),
]


@pytest.mark.parametrize(("protocol", "sizes"), CASES, ids=[case[0] for case in CASES])
def test_each_protocol_gives_what_its_plain_loop_gives(protocol, sizes, checkpoint, exl2, file):
    folder = checkpoint("bos")
    results, config, _ = evaluate(exl2("bos"), folder, file, protocol=protocol, **sizes)
    expected = LOOPS[protocol](*read(folder), LINES, window=WINDOW, **sizes)
    assert results["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
    assert results["targets"] == expected.targets
    assert config["metadata"]["perplexity"]["targets_available"] == expected.targets


def test_the_harness_own_model_gives_the_same(checkpoint, hf, exl2, file):
    folder = checkpoint("bos")
    ours, _, samples = evaluate(exl2("bos"), folder, file)
    theirs, _, also = evaluate(hf("bos", batch_size=3), folder, file)
    assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-5)
    assert theirs["perplexity"] == pytest.approx(
        gptq(*read(folder), LINES, window=WINDOW).perplexity, rel=1e-4
    )
    assert theirs["perplexity_stderr"] == pytest.approx(ours["perplexity_stderr"], rel=1e-4)
    for one, other in zip(samples, also, strict=True):
        assert one["doc_hash"] == other["doc_hash"]
        assert one["perplexity"][0] == pytest.approx(other["perplexity"][0], rel=1e-4)


def test_the_result_says_what_was_measured(checkpoint, exl2, file):
    results, config, samples = evaluate(exl2("bos"), checkpoint("bos"), file, limit=3)
    said = config["metadata"]["perplexity"]
    _, tokenizer = read(checkpoint("bos"))
    tokens = len(tokenizer("\n\n".join(LINES), verbose=False).input_ids)
    assert said["tokens"] == tokens
    assert said["windows_available"] == tokens // WINDOW
    assert {key: said[key] for key in ("protocol", "window", "stride", "bos", "dataset")} == {
        "protocol": "gptq",
        "window": WINDOW,
        "stride": WINDOW,
        "bos": "start of text",
        "dataset": file,
    }
    assert results["alias"] == f"exl2_wikitext2_ppl (gptq, window {WINDOW})"
    assert results["targets"] == 3 * (WINDOW - 1)  # what was scored, not what could have been
    assert samples[1]["doc"]["start"] == WINDOW
    assert samples[1]["arguments"][0][0] == samples[1]["doc"]["text"]
    assert results["perplexity_stderr"] > 0


def test_digests_tell_texts_and_tokenizations_apart(checkpoint, exl2, file, tmp_path):
    folder = checkpoint("bos")
    _, config, samples = evaluate(exl2("bos"), folder, file, limit=2)
    joined = "\n\n".join(LINES)
    assert config["metadata"]["perplexity"]["text_sha256"] == sha256(joined)
    _, tokenizer = read(folder)
    ids = tokenizer(joined, verbose=False).input_ids
    assert [each["doc"]["ids_sha256"] for each in samples] == [
        sha256(json.dumps(ids[at : at + WINDOW])) for at in (0, WINDOW)
    ]


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_standard_error_knows_how_windows_overlap(checkpoint, file):
    class Alternating(LM):
        loglikelihood = loglikelihood_rolling = generate_until = None

        def _loglikelihood_tokens(self, requests, **_arguments):
            return [(-30.0 - (at % 3), False) for at in range(len(requests))]

    sizes = {"protocol": "exllamav3-chart", "stride": 8, "rows": 20}
    results, _, samples = evaluate(Alternating(), checkpoint("bos"), file, **sizes)
    items = [(*each["perplexity"], each["doc"]["start"]) for each in samples]
    assert results["perplexity_stderr"] == pytest.approx(perplexity_stderr(items, overlaps=4))
    assert perplexity_stderr(items, overlaps=4) > 1.5 * perplexity_stderr(items)


def test_requests_are_never_taken_from_the_harness_cache(
    checkpoint, exl2, file, monkeypatch, tmp_path
):
    """Its key knows neither window nor model."""
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
    for window in (WINDOW, WINDOW // 2):
        fresh, _, _ = evaluate(exl2("bos"), checkpoint("bos"), file, limit=4, window=window)
        cached, _, _ = evaluate(
            exl2("bos"), checkpoint("bos"), file, limit=4, window=window, cache_requests=True
        )
        assert cached["perplexity"] == pytest.approx(fresh["perplexity"], rel=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokenized_requests": False},
        {"tokenized_requests": "False"},
        {"tokenizer_backend": None},
        {"tokenizer_backend": "tiktoken"},
    ],
)
def test_adapters_that_send_text_are_refused(checkpoint, file, arguments):
    with pytest.raises(OptionError, match="would send text"):
        load(checkpoint("bos"), file, **arguments)
    load(checkpoint("bos"), file, tokenized_requests=True, tokenizer_backend="huggingface")


def test_one_window_alone_has_no_standard_error(checkpoint, exl2, file):
    results, _, _ = evaluate(exl2("bos"), checkpoint("bos"), file, limit=1)
    assert results["perplexity_stderr"] == "N/A"


def test_predict_only_computes_no_metric(checkpoint, exl2, file):
    results, _, samples = evaluate(exl2("bos"), checkpoint("bos"), file, limit=2, predict_only=True)
    assert "perplexity" not in results
    assert len(samples) == 2


def test_a_window_longer_than_the_context_is_an_error_before_anything_runs(checkpoint, file):
    with pytest.raises(OptionError, match="window=65 is longer than the model's context of 64"):
        load(checkpoint("bos"), file, window=65)
    with pytest.raises(OptionError, match=r"window=33 .* context of 32"):
        load(checkpoint("bos"), file, window=33, max_length=32)


def test_the_exl2_model_refuses_what_it_would_cut(checkpoint, exl2):
    """Where only the model, not the task, knows how little it takes."""
    request = request_tokens({}, [5] * 64, [6, 7], text="", index=0, metadata=("task", 0, 1))
    with pytest.raises(RequestError, match=r"66 tokens does not fit, .* cut it to 65"):
        exl2("bos")._loglikelihood_tokens([request])


def test_vllms_adapter_scores_windows_up_to_its_context_less_one(monkeypatch, checkpoint, file):
    """The harness's own adapter over an engine that gives every token the log-probability -2."""
    adapter = load_vllm_adapter(monkeypatch)
    model = adapter.__new__(adapter)
    model.__dict__.update(_max_length=WINDOW + 1, batch_size="auto", _rank=0, _world_size=1)
    seen = []

    def generate(requests, generate):
        seen.extend(requests)
        return [
            types.SimpleNamespace(prompt_logprobs=[None, *({token: -2.0} for token in ids[1:])])
            for ids in requests
        ]

    model._model_generate = generate
    results, _, _ = evaluate(model, checkpoint("bos"), file)
    assert results["perplexity"] == pytest.approx(math.exp(2))
    assert {type(ids) for ids in seen} == {list}
    model._max_length = WINDOW
    with pytest.raises(RequestError, match="would cut it to 31"):
        evaluate(model, checkpoint("bos"), file)


def load_vllm_adapter(monkeypatch):
    """The adapter, with nothing but names in place of vllm."""

    class Anything(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in ("", ".lora", ".lora.request", ".entrypoints", ".entrypoints.chat_utils"):
        monkeypatch.setitem(sys.modules, f"vllm{name}", Anything(f"vllm{name}"))
    for name in (".renderers", ".renderers.hf", ".tokenizers"):
        monkeypatch.setitem(sys.modules, f"vllm{name}", Anything(f"vllm{name}"))
    real = packages.version
    monkeypatch.setattr(
        packages, "version", lambda name: "0.18.0" if name == "vllm" else real(name)
    )
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    module = importlib.import_module("lm_eval.models.vllm_causallms")
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms")
    return module.VLLM


@pytest.mark.parametrize("loss", ["nan", "-inf"])
def test_a_loss_that_is_no_number_is_not_averaged(checkpoint, file, loss):
    class Broken(LM):
        loglikelihood = loglikelihood_rolling = generate_until = None

        def _loglikelihood_tokens(self, requests, **_arguments):
            return [(float(loss), False)] * len(requests)

    with pytest.raises(ScoreError, match=f"log-likelihood {loss}; .* softmax_dtype=float32"):
        evaluate(Broken(), checkpoint("bos"), file)


# -- the text ----------------------------------------------------------------------------------


def test_a_raw_file_becomes_the_rows_of_the_hub(tmp_path):
    written = tmp_path / "wiki.test.raw"
    written.write_text(" \n = Title = \n \n A line\u2028with a separator . \n", encoding="utf-8")
    expected = ["", " = Title = \n", "", " A line\u2028with a separator . \n"]
    assert read_lines(written) == expected
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in expected]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    pandas.DataFrame({"text": expected}).to_parquet(tmp_path / "a.parquet")
    assert read_lines(tmp_path / "a.jsonl") == expected
    assert read_lines(tmp_path / "a.parquet") == expected


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"page": "x"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": null}\n')
    (tmp_path / "d.json").write_text('["x"]')
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    for name in ("missing.txt", "a.jsonl", "b.parquet", "c.jsonl", "d.json"):
        with pytest.raises(OptionError, match=r"dataset_file=.* cannot be read"):
            read_lines(tmp_path / name)


def test_empty_lines_can_be_dropped_as_exllamav3_does_now(checkpoint, exl2, file):
    folder = checkpoint("bos")
    kept = [line for line in LINES if line.strip()]
    results, _, _ = evaluate(exl2("bos"), folder, file, empty_lines="drop")
    assert results["perplexity"] == pytest.approx(
        gptq(*read(folder), kept, window=WINDOW).perplexity, rel=1e-4
    )
    with pytest.raises(OptionError, match="empty_lines='skip'"):
        load(folder, file, empty_lines="skip")


class Letters:
    """A tokenizer of one token per character, with BOS 1 where it is not told otherwise."""

    bos_token_id = 1

    def __call__(self, text, *, verbose, add_special_tokens=True):
        assert not verbose
        if isinstance(text, list):
            return {"input_ids": [[ord(letter) for letter in row] for row in text]}
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


def cut_letters(protocol, lines, *, architecture="LlamaForCausalLM", **sizes):
    model = load_letters(architecture)
    chosen = choose_sizes(PROTOCOLS[protocol], context=100, **sizes)
    return cut(lines, model, PROTOCOLS[protocol], chosen)


def load_letters(architecture):
    return types.SimpleNamespace(tokenizer=Letters(), config={"architectures": [architecture]})


def as_text(rows):
    return ["".join("^" if token == 1 else chr(token) for token in ids) for ids in rows.ids]


def test_bos_stands_where_each_protocol_puts_it():
    lines = ["", "abcd", "ef"]
    gptq = cut_letters("gptq", lines, window=4)
    assert as_text(gptq) == ["^\n\na", "bcd\n"]
    assert gptq.bos == "start of text"
    assert as_text(cut_letters("exllamav2-sp", lines, window=4, stride=2))[0] == "\n\nab"
    assert as_text(cut_letters("exllamav2-ed", lines, window=3, rows=2)) == ["abc", "def"]


@pytest.mark.parametrize(
    "architecture",
    [
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
        "CohereForCausalLM",
        "Cohere2ForCausalLM",
    ],
)
def test_architectures_that_need_bos_get_it_in_every_row_of_ed(architecture):
    rows = cut_letters(
        "exllamav2-ed", ["", "abcd", "ef"], window=3, rows=2, architecture=architecture
    )
    assert as_text(rows) == ["^ab", "^de"]  # the last token makes room
    assert rows.bos == "every window"


def test_without_a_config_nobody_knows_whether_bos_is_needed():
    model = types.SimpleNamespace(tokenizer=Letters(), config={})
    protocol = PROTOCOLS["exllamav2-ed"]
    with pytest.raises(OptionError, match="BOS where the architecture needs it"):
        cut(["abc"], model, protocol, choose_sizes(protocol, context=9, window=3, rows=1))


def test_a_tokenizer_that_adds_no_bos_is_said_to_add_none():
    class Silent(Letters):
        def __call__(self, text, *, verbose, add_special_tokens=True):
            return super().__call__(text, verbose=verbose, add_special_tokens=False)

    model = types.SimpleNamespace(tokenizer=Silent(), config={})
    sizes = choose_sizes(PROTOCOLS["gptq"], context=9, window=3)
    assert cut(["abc"], model, PROTOCOLS["gptq"], sizes).bos == "none"


def test_too_little_text_is_an_error():
    with pytest.raises(OptionError, match="6 tokens, which is 1 windows of 4; expected 2"):
        cut_letters("exllamav2-ed", ["abcdef"], window=4, rows=2)
    with pytest.raises(OptionError, match="which is 0 windows of 9; expected at least one"):
        cut_letters("gptq", ["abcdef"], window=9)


# -- the model's files -------------------------------------------------------------------------


def test_a_task_without_a_model_asks_for_a_tokenizer():
    with pytest.raises(OptionError, match="name the tokenizer"):
        load_model_files({})


def test_a_tokenizer_alone_is_enough_and_brings_its_config(checkpoint, tmp_path):
    found = load_model_files({"tokenizer": str(checkpoint("bos"))})
    assert found.context == 64
    assert found.config["architectures"] == ["LlamaForCausalLM"]
    assert load_model_files({"tokenizer": str(checkpoint("bos")), "max_length": 77}).context == 77
    found.tokenizer.save_pretrained(tmp_path)
    alone = load_model_files({"tokenizer": str(tmp_path)})
    assert (alone.config, alone.context) == ({}, None)
    assert load_model_files({"tokenizer": alone.tokenizer}).tokenizer is alone.tokenizer


@pytest.mark.parametrize("name", ["max_length", "max_model_len", "context_length"])
def test_the_context_asked_for_counts_by_every_adapters_name(checkpoint, name):
    known = {"pretrained": str(checkpoint("bos"))}
    assert load_model_files({**known, name: 20}).context == 20
    assert load_model_files({**known, name: "20"}).context == 20
    with pytest.raises(OptionError, match=f"{name}='8k', expected a whole number"):
        load_model_files({**known, name: "8k"})


class Asked:
    """Stands in for the loaders of transformers; remembers what it was asked."""

    def __init__(self, monkeypatch, config=None):
        self.calls = []
        loaders = (("AutoTokenizer", "tokenizer"), ("AutoConfig", "config"))
        for name, kind in loaders:
            monkeypatch.setattr(getattr(transformers, name), "from_pretrained", self._record(kind))
        self.config = config or types.SimpleNamespace(max_position_embeddings=5)
        monkeypatch.setattr(
            transformers.PretrainedConfig, "get_config_dict", lambda *_a, **_k: ({}, {})
        )

    def _record(self, kind):
        def load(source, **arguments):
            self.calls.append((kind, source, arguments))
            return self.config if kind == "config" else "tokenizer"

        return load


def test_files_are_asked_for_as_the_adapters_ask(monkeypatch):
    asked = Asked(monkeypatch)
    load_model_files(
        {
            "pretrained": "org/name",
            "revision": "6.5",
            "subfolder": "inner",
            "add_bos_token": False,
            "trust_remote_code": True,
        }
    )
    named = {"revision": "6.5", "subfolder": "inner", "trust_remote_code": True}
    assert asked.calls == [
        ("tokenizer", "org/name", {**named, "add_bos_token": False}),
        ("config", "org/name", named),
    ]


def test_another_tokenizer_is_loaded_in_place_of_the_models(monkeypatch):
    asked = Asked(monkeypatch)
    load_model_files({"pretrained": "org/other", "tokenizer": "org/tokens"})
    assert [(kind, source) for kind, source, _ in asked.calls] == [
        ("tokenizer", "org/tokens"),
        ("config", "org/other"),
    ]


def test_the_text_part_of_a_composite_config_has_the_context(monkeypatch):
    inner = types.SimpleNamespace(max_position_embeddings=9)
    Asked(monkeypatch, types.SimpleNamespace(max_position_embeddings=3, text_config=inner))
    assert load_model_files({"pretrained": "org/composite"}).context == 9


def test_a_local_subfolder_is_where_the_files_are(checkpoint, tmp_path):
    (tmp_path / "inner").symlink_to(checkpoint("bos"))
    found = load_model_files({"pretrained": str(tmp_path), "subfolder": "inner"})
    assert found.context == 64


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(OptionError, match="no usable tokenizer in ") as caught:
        load_model_files({"pretrained": str(tmp_path)})
    assert "\n" not in str(caught.value)


def test_the_demo_checkpoint_is_known_by_name():
    found = load_model_files({"pretrained": "demo"})
    assert found.context == 512
    assert found.config["quantization_config"]["quant_method"] == "exl2"


# -- requests in ids ---------------------------------------------------------------------------


def test_a_token_request_is_a_triple_and_an_instance():
    request = TokenRequest("loglikelihood", {}, ("text",), 0, context_ids=[1], target_ids=[2, 3])
    assert tuple(request) == (None, [1], [2, 3])
    assert (request[-2], request[-1], len(request)) == ([1], [2, 3], 3)
    assert request.args == ("text",)
    asked = request_tokens({}, [1], [2], text="text", index=5, metadata=("task", 3, 1))
    assert (asked.idx, asked.doc_id, asked.task_name) == (5, 3, "task")


def test_ids_refuse_to_lose_their_beginning_only():
    ids = operator.add(WholeIds([1]), [2, 3])
    assert ids[-3:] == ids[-9:] == [1, 2, 3]
    assert ids[-4:][:-1] == [1, 2]
    assert ids[1:2] == [2]
    with pytest.raises(RequestError, match=r"3 tokens does not fit, .* cut it to 2"):
        ids[-2:]
