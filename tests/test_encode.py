"""Text and token ids: batches equal single strings, spaces and half characters survive."""

from functools import cache

import pytest
import text_models
import transformers
from asking import ask
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.model import TemplateLM

from lm_eval_exl2.encode import Encoder, load_tokenizer
from lm_eval_exl2.errors import ModelFormatError, OptionError
from lm_eval_exl2.options import parse_options

TEXT = st.text("ab \n.é日😀", max_size=12)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=8)
NAMES = st.sampled_from(sorted(text_models.KINDS))


@cache
def encoder_of(name, add_bos_token=None, prefix_token_id=None):
    kind = text_models.KINDS[name]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=text_models.train_tokenizer(kind),
        bos_token=kind.bos,
        eos_token=kind.eos,
        unk_token=kind.unk,
    )
    return Encoder(tokenizer, add_bos_token=add_bos_token, prefix_token_id=prefix_token_id)


def encode(encoder, pairs):
    requests = [ask("loglikelihood", *pair) for pair in pairs]
    return encoder.encode_pairs(requests, disable_tqdm=True)


# -- pairs ----------------------------------------------------------------------------------


@given(NAMES, st.sampled_from([None, True, False]), PAIRS)
def test_many_pairs_are_encoded_as_the_harness_encodes_one(name, add_bos_token, pairs):
    encoder = encoder_of(name, add_bos_token)
    found = encode(encoder, pairs)
    assert [arguments for arguments, _, _ in found] == pairs
    for (context, continuation), (_, context_ids, target_ids) in zip(pairs, found, strict=True):
        assert context_ids
        if context.rstrip():
            expected = TemplateLM._encode_pair(encoder, context, continuation)
            assert (context_ids, target_ids) == expected
        elif not context:
            ids = encoder.tok_encode(continuation, add_special_tokens=False)
            assert context_ids == [encoder.prefix_token_id]
            assert target_ids == ids[ids[:1] == context_ids :]


@given(NAMES, PAIRS, st.data())
def test_a_pair_is_encoded_the_same_alone_and_in_any_company(name, pairs, data):
    encoder = encoder_of(name)
    order = data.draw(st.permutations(pairs))
    alone = [encode(encoder, [pair])[0] for pair in order]
    assert encode(encoder, order) == alone


def test_remembered_encodings_are_dropped_when_the_pairs_are_encoded():
    encoder = encoder_of("bos")
    encode(encoder, [("a", "b")])
    assert encoder._memo == {}


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation():
    encoder = encoder_of("plain")
    one, other = encode(encoder, [("It was ", "not"), ("It was", " not")])
    assert one[1:] == other[1:]


def test_text_without_a_single_token_is_nothing_to_score():
    encoder = encoder_of("plain")
    found = encode(encoder, [("", ""), ("", encoder._prefix_text), ("a", "")])
    assert [target for _, _, target in found] == [[], [], []]


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_bos_is_never_put_before_a_text_that_has_it(add_bos_token):
    encoder = encoder_of("bos", add_bos_token)
    bos = encoder.prefix_token_id
    assert encoder.tok_encode("<|begin|>a").count(bos) == 1
    assert encoder.encode_prompt("<|begin|>a").count(bos) == 1
    expected = 0 if add_bos_token is False else 1
    assert encoder.tok_encode("a").count(bos) == expected
    assert encoder.encode_prompt("a").count(bos) == expected


# -- documents ------------------------------------------------------------------------------


@given(NAMES, st.text("ab \n.é日😀", max_size=60), st.integers(2, 12))
def test_every_token_of_a_document_is_predicted_once(name, text, max_length):
    encoder = encoder_of(name)
    windows = encoder.encode_windows(text, max_length)
    ids = encoder.tok_encode(text)
    assert [token for _, _, target in windows for token in target] == ids
    before = [encoder.prefix_token_id, *ids]
    done = 0
    for _, context, target in windows:
        assert len(context) > 0
        assert 0 < len(target) <= max_length
        assert len(context) + len(target) <= max_length + 1
        assert context == before[: done + 1][-len(context) :]
        done += len(target)


# -- the token before an empty context ------------------------------------------------------


def test_the_prefix_is_the_token_given_else_bos_else_eos():
    tokens = {name: encoder_of(name).tokenizer for name in text_models.KINDS}
    assert encoder_of("bos", prefix_token_id=5).prefix_token_id == 5
    assert encoder_of("bos").prefix_token_id == tokens["bos"].bos_token_id
    assert encoder_of("turns").prefix_token_id == tokens["turns"].eos_token_id


@pytest.mark.parametrize("wanted", [-1, 100_000])
def test_a_prefix_that_is_no_token_is_refused(wanted):
    with pytest.raises(OptionError, match=f"prefix_token_id={wanted} is no token"):
        encoder_of("bos", prefix_token_id=wanted)


def test_a_tokenizer_without_bos_and_eos_needs_a_prefix():
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=text_models.train_tokenizer(text_models.KINDS["plain"])
    )
    with pytest.raises(OptionError, match="give prefix_token_id"):
        Encoder(tokenizer, add_bos_token=None, prefix_token_id=None)
    assert Encoder(tokenizer, add_bos_token=None, prefix_token_id=3).prefix_token_id == 3


def test_ids_may_have_gaps():
    import json

    from tokenizers import Tokenizer

    content = json.loads(text_models.train_tokenizer(text_models.KINDS["plain"]).to_str())
    far = {"id": 1000, "content": "<|far|>", "special": True, "normalized": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append(far | plain)
    content["model"]["vocab"]["<|far|>"] = 1000
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<|far|>"
    )
    encoder = Encoder(tokenizer, add_bos_token=None, prefix_token_id=None)
    assert len(tokenizer) < encoder.prefix_token_id == encoder.largest_id == 1000
    assert encode(encoder, [("<|far|>a", "b")])[0][1][0] == 1000


# -- back to text ---------------------------------------------------------------------------


@given(NAMES, st.text("ab \n.é日😀<", max_size=20))
def test_decoding_and_streaming_give_back_what_was_encoded(name, text):
    encoder = encoder_of(name)
    ids = encoder.tok_encode(text, add_special_tokens=False)
    # These tokenizers put a space before every text.
    expected = f" {text}" if text and text_models.KINDS[name].metaspace else text
    assert encoder.decode(ids) == expected
    stream = encoder.stream()
    assert "".join(map(stream.push, ids)) == expected


@given(NAMES, st.text("ab \n.é日😀", max_size=8), st.text("ab \n.é日😀", max_size=8))
def test_a_continuation_decodes_as_it_does_behind_its_prompt(name, prompt, text):
    encoder = encoder_of(name)
    before = encoder.tok_encode(f"a{prompt}b", add_special_tokens=False)
    ids = encoder.tok_encode(text, add_special_tokens=False)
    whole = encoder.tokenizer.decode([*before, *ids])
    assert whole == encoder.tokenizer.decode(before) + encoder.decode(ids)


def test_half_a_character_is_held_back_until_it_is_whole():
    for name in ("plain", "metaspace"):
        encoder = encoder_of(name)
        ids = encoder.tok_encode("a😀b", add_special_tokens=False)
        stream = encoder.stream()
        pieces = [stream.push(token) for token in ids]
        assert "😀" in pieces
        assert "" in pieces
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_broken_character_is_shown_once_the_next_one_is_there():
    encoder = encoder_of("plain")
    first = encoder.tok_encode("😀", add_special_tokens=False)[0]
    (letter,) = encoder.tok_encode("b", add_special_tokens=False)
    stream = encoder.stream()
    assert [stream.push(first), stream.push(letter)] == ["", "\ufffdb"]


def test_special_tokens_show_in_the_stream_and_not_in_the_text():
    encoder = encoder_of("bos")
    token = encoder.tokenizer.convert_tokens_to_ids("<|eot|>")
    assert encoder.is_special(token)
    assert not encoder.is_special(encoder.largest_id)
    assert encoder.stream().push(token) == "<|eot|>"
    assert encoder.decode([token]) == ""
    assert encoder.decode([token], skip_special_tokens=False) == "<|eot|>"


# -- which tokenizer ------------------------------------------------------------------------


def test_the_fingerprint_follows_everything_that_changes_ids():
    names = [encoder_of(name).fingerprint() for name in text_models.KINDS]
    names += [encoder_of("bos", False).fingerprint(), encoder_of("bos", None, 5).fingerprint()]
    assert len(set(names)) == len(names)


def test_the_tokenizer_comes_from_the_checkpoint_unless_another_is_named(checkpoint):
    folder, other = checkpoint("bos"), checkpoint("turns")
    found = load_tokenizer(parse_options({"pretrained": "x"}), folder)
    assert found.bos_token == "<|begin|>"
    named = parse_options({"pretrained": "x", "tokenizer": str(other)})
    assert load_tokenizer(named, folder).eos_token == "<|im_end|>"
    given = parse_options({"pretrained": "x", "tokenizer": found})
    assert load_tokenizer(given, other) is found


def test_a_folder_without_a_tokenizer_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ModelFormatError, match="no usable tokenizer in") as caught:
        load_tokenizer(parse_options({"pretrained": "x"}), tmp_path)
    assert "\n" not in str(caught.value)
