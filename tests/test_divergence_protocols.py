"""Which tokens each protocol forwards and compares, against its source read by hand."""

import pytest
from text_models import KINDS, train_tokenizer
from transformers import PreTrainedTokenizerFast

from lm_eval_exl2.divergence.protocols import PROTOCOLS
from lm_eval_exl2.divergence.text import Text, check_tokenizers, cut_windows, load_text
from lm_eval_exl2.errors import ComparisonError, OptionError

QBENCH, LLAMA_CPP, MODEL_DIFF = (PROTOCOLS[n] for n in ("qbench", "llama.cpp", "model_diff"))
ROWS = ["", " = Title = \n", "", " The quick brown fox jumps over the lazy dog . \n"] * 12
TEXT = Text("rows", ROWS, "".join(row or " \n" for row in ROWS))


@pytest.fixture(scope="module")
def tokenizer():
    """One that puts BOS in front of a text, as Llama's do."""
    return wrap("bos")


def wrap(kind):
    names = {"bos_token": KINDS[kind].bos, "eos_token": KINDS[kind].eos}
    return PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(KINDS[kind]), **names)


def cut(tokenizer, protocol, window=16, rows=None):
    return cut_windows(TEXT, tokenizer, protocol, window=window, rows=rows)


def test_published_sizes_are_the_default():
    assert (QBENCH.window, QBENCH.rows) == (2048, None)
    assert (LLAMA_CPP.window, LLAMA_CPP.rows) == (512, None)
    assert (MODEL_DIFF.window, MODEL_DIFF.rows, MODEL_DIFF.top) == (2048, 20, 5)


def test_qbench_joins_rows_that_are_not_empty_and_compares_every_position(tokenizer):
    found = cut(tokenizer, QBENCH)
    joined = "\n\n".join(row for row in ROWS if row)
    ids = tokenizer.encode(joined, add_special_tokens=False)
    assert found.ids == [ids[i : i + 16] for i in range(0, len(ids) - 16, 16)]
    assert found.positions == range(16)
    assert (found.tokens, found.bos) == (len(ids), "none")


def test_qbench_leaves_out_a_window_that_ends_with_the_text():
    assert QBENCH.starts(96, 32, None) == range(0, 64, 32)
    assert QBENCH.starts(97, 32, None) == range(0, 96, 32)
    assert LLAMA_CPP.starts(96, 32, None) == range(0, 96, 32)


def test_llama_cpp_puts_bos_over_the_first_token_of_every_window(tokenizer):
    found = cut(tokenizer, LLAMA_CPP)
    ids = tokenizer.encode(TEXT.raw)
    assert ids[0] == tokenizer.bos_token_id
    assert found.ids[0] == ids[:16]
    assert found.ids[2] == [tokenizer.bos_token_id, *ids[33:48]]
    assert len(found.ids) == len(ids) // 16
    assert found.bos == "every window"


def test_llama_cpp_compares_the_second_half_up_to_the_last_target():
    # n_ctx - 1 - n_ctx / 2 of 512: 255 positions, the first one at 256.
    assert LLAMA_CPP.positions(512) == range(256, 511)
    assert LLAMA_CPP.positions(9) == range(4, 8)


def test_llama_cpp_puts_no_bos_where_the_tokenizer_has_none():
    assert cut(wrap("plain"), LLAMA_CPP).bos == "none"


def test_llama_cpp_needs_two_windows_even_for_one(tokenizer):
    size = cut(tokenizer, LLAMA_CPP).tokens
    assert len(cut(tokenizer, LLAMA_CPP, window=size // 2, rows=1).ids) == 1
    with pytest.raises(OptionError, match=r"which is 1 windows .* at least 2"):
        cut(tokenizer, LLAMA_CPP, window=size // 2 + 1)


def test_model_diff_tokenizes_row_by_row_and_needs_all_its_rows(tokenizer):
    found = cut(tokenizer, MODEL_DIFF, rows=5)
    ids = [i for row in ROWS for i in tokenizer.encode(row, add_special_tokens=False)]
    assert found.ids == [ids[i : i + 16] for i in range(0, 80, 16)]
    assert found.positions == range(16)
    with pytest.raises(OptionError, match=r"windows of 16; .* at least 1000"):
        cut(tokenizer, MODEL_DIFF, rows=1000)


def test_rows_limit_the_windows(tokenizer):
    assert cut(tokenizer, QBENCH, rows=3).ids == cut(tokenizer, QBENCH).ids[:3]


def test_a_text_too_short_for_a_window_is_refused(tokenizer):
    with pytest.raises(OptionError, match="0 windows of 5000"):
        cut(tokenizer, QBENCH, window=5000)


def test_runs_over_the_same_tokens_have_the_same_digest(tokenizer):
    first, second = cut(tokenizer, QBENCH), cut(tokenizer, QBENCH)
    assert first.ids_sha256 == second.ids_sha256
    assert first.ids_sha256 != cut(tokenizer, QBENCH, rows=3).ids_sha256


def test_other_vocabularies_are_refused(tokenizer):
    check_tokenizers(["a", "b"], [tokenizer, wrap("bos")], TEXT)
    with pytest.raises(ComparisonError, match="b and a have different vocabularies"):
        check_tokenizers(["a", "b"], [tokenizer, wrap("plain")], TEXT)


def test_the_same_vocabulary_used_otherwise_is_refused(tokenizer):
    other = wrap("bos")
    other.backend_tokenizer.normalizer = None
    other.backend_tokenizer.post_processor = None  # no BOS
    with pytest.raises(ComparisonError, match="the same text into different token ids"):
        check_tokenizers(["a", "b"], [tokenizer, other], TEXT)


def test_a_plain_file_is_rows_by_line_and_as_it_is_for_llama_cpp(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("one\n \ntwo\n")
    assert load_text(str(file)) == ("text.txt", ["one\n", "", "two\n"], "one\n \ntwo")


def test_a_jsonl_file_is_its_texts(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert load_text(str(file)) == ("text.jsonl", ["one", "two"], "one\n\ntwo")


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(OptionError, match=r"^--text .*absent.* cannot be read"):
        load_text(str(tmp_path / "absent"))


def test_wikitext_that_cannot_be_had_is_one_line_that_says_what_else_to_give(monkeypatch):
    def fail(*_arguments, **_options):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(OptionError, match=r"\(no route\); give --text FILE"):
        load_text("wikitext2")


def test_wikitext_is_the_hubs_rows_and_the_raw_files_blank_lines(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_a, **_o: {"text": ["", " = A = \n"]})
    found = load_text("wikitext2")
    assert found.rows == ["", " = A = \n"]
    assert found.raw == " \n = A = "
