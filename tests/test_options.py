"""Model arguments: what works, what is accepted, and what each bad one is told."""

from __future__ import annotations

import inspect
import logging

import pytest

from lm_eval_exl2.errors import Exl2EvalError, OptionError
from lm_eval_exl2.options import ALIASES, IGNORED, REFUSED, Options, parse_options

KNOWN = {*Options.__dataclass_fields__, *ALIASES, *IGNORED, *REFUSED}


def parse(**arguments: object) -> Options:
    return parse_options({"pretrained": "somewhere", **arguments})


def test_every_parameter_of_the_hf_model_is_known():
    from lm_eval.models.huggingface import HFLM

    parameters = set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs"}
    assert parameters - KNOWN == set()


def test_the_defaults_of_the_hf_model_are_all_accepted():
    from lm_eval.models.huggingface import HFLM

    parameters = inspect.signature(HFLM.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert parse(**defaults).revision == "main"


@pytest.mark.parametrize("value", [1, "1", "auto", "auto:4", None])
def test_batch_size_one_and_auto_mean_the_token_budget(value):
    assert parse(batch_size=value).batch_size is None


@pytest.mark.parametrize(("value", "rows"), [(8, 8), ("8", 8), (2.0, 2)])
def test_larger_batch_sizes_cap_sequences(value, rows):
    assert parse(batch_size=value).batch_size == rows


@pytest.mark.parametrize("alias", ["max_length", "max_model_len", "max_seq_len"])
def test_the_window_has_three_names(alias):
    assert parse(**{alias: "77"}).max_length == 77


def test_values_arrive_as_the_harness_made_them_of_the_command_line():
    options = parse(
        add_bos_token="True",
        prefix_token_id=5.0,
        chat_template_args='{"a": 1}',
        think_end_token="128",
        dtype="torch.bfloat16",
        enable_thinking="false",
        max_length="None",
    )
    assert options.add_bos_token is True
    assert options.prefix_token_id == 5
    assert options.chat_template_args == {"a": 1}
    assert options.think_end_token == 128
    assert options.dtype == "bfloat16"
    assert options.enable_thinking is False
    assert options.max_length is None


@pytest.mark.parametrize("value", ["20,24", "[20, 24]", [20, 24], ("20", "24.0")])
def test_a_split_over_cards_comes_as_a_list_or_a_string_of_one(value):
    assert parse(gpu_split=value).gpu_split == (20.0, 24.0)


def test_exllamav2s_words_mean_what_they_mean_there():
    options = parse(gpu_split="AUTO", cache_mode="q4", cache_size="4096", rope_alpha="2.5")
    assert options.gpu_split == "auto"
    assert options.cache_mode == "Q4"
    assert options.cache_size == 4096
    assert options.rope_alpha == 2.5
    assert parse(gpu_split=20).gpu_split == (20.0,)


def test_seed_zero_is_a_seed():
    assert parse(seed=0).seed == 0


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_arguments_that_cannot_change_a_score_are_accepted_with_one_log_line(name, caplog):
    with caplog.at_level(logging.INFO):
        parse(**{name: "something"})
    assert [record.message for record in caplog.records if name in record.message] != []


BAD = {
    "unknown name": ({"dtpye": "float16"}, "unknown model argument 'dtpye'; did you mean dtype"),
    "unknown, nothing near": ({"zzz": 1}, "unknown model argument 'zzz'"),
    "word for a number": ({"max_length": "long"}, "max_length='long': expected a whole number"),
    "fraction": ({"max_gen_toks": 2.5}, "max_gen_toks=2.5: expected a whole number"),
    "zero tokens": ({"max_batch_tokens": 0}, "at least 1"),
    "infinite": ({"max_length": float("inf")}, "expected a whole number"),
    "negative batch": ({"batch_size": -2}, "batch_size=-2"),
    "batch size word": ({"batch_size": "many"}, "batch_size='many'"),
    "batch schedule": ({"batch_size": "auto:x"}, "expected a whole number, auto or auto:N"),
    "truth value": ({"add_bos_token": "maybe"}, "expected True or False"),
    "dtype": ({"dtype": "int8"}, "dtype='int8': expected one of auto"),
    "engine": ({"engine": "vllm"}, "engine='vllm': expected one of auto"),
    "weight memory": ({"weight_memory": "half"}, "expected one of decoded, packed"),
    "template arguments": ({"chat_template_args": "a=1"}, "expected a JSON object"),
    "list for text": ({"tokenizer": ["a"]}, "expected text"),
    "two names for one": ({"max_length": 5, "max_model_len": 6}, "name the same setting"),
    "thinking": ({"enable_thinking": True}, "needs think_end_token"),
    "seq2seq": ({"backend": "seq2seq"}, "EXL2 models are causal"),
    "parallelize": ({"parallelize": True}, "gpu_split"),
    "tensor parallel": ({"tp_plan": "auto"}, "tensor parallelism is not supported"),
    "adapter": ({"peft": "some/adapter"}, "merge it before quantizing"),
    "gguf": ({"gguf_file": "x.gguf"}, "--model hf"),
    "autogptq": ({"autogptq": True}, "load by themselves"),
    "cache mode": ({"cache_mode": "Q5"}, "cache_mode='Q5': expected one of fp16, q8, q6, q4"),
    "a split of nothing": ({"gpu_split": "0,0"}, "expected GiB per card such as [20,24], or auto"),
    "a split cut in two": ({"gpu_split": "[20", "24]": ""}, "unknown model argument '24]'"),
    "a word for a split": ({"gpu_split": "all"}, "gpu_split='all': expected GiB per card"),
    "no scale": ({"rope_scale": 0}, "rope_scale=0: expected a positive number"),
    "alpha word": ({"rope_alpha": "big"}, "expected a positive number"),
    "two drafts": ({"draft_model": "a", "ngram_draft": True}, "give one of them"),
    "tensor parallel size": ({"tensor_parallel_size": 2}, "use `gpu_split`"),
    "no replicas": ({"data_parallel_size": 0}, "whole number of at least 1"),
    "cards of a replica": ({"data_parallel_size": 2, "gpu_split": "auto"}, "how many cards"),
    "card of replicas": ({"data_parallel_size": 2, "device": "cuda:1"}, "leave device out"),
    "truncation side": ({"truncation_side": "top"}, "expected one of left, middle, right"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_bad_argument_gets_one_clear_line(case):
    arguments, text = BAD[case]
    with pytest.raises(OptionError) as error:
        parse(**arguments)
    assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, Exl2EvalError)


def test_a_missing_checkpoint_is_said_so():
    with pytest.raises(OptionError, match="pretrained is missing"):
        parse_options({})


def test_model_is_another_name_for_pretrained():
    assert parse_options({"model": "x"}).pretrained == "x"
