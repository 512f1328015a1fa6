"""Chat templates: which one is rendered, with what, and how the end of reasoning is found."""

import pytest
import text_models
import transformers

from lm_eval_exl2.chat import ChatTemplates, resolve_think_end
from lm_eval_exl2.encode import Encoder
from lm_eval_exl2.errors import OptionError

HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
]


def tokenizer_of(name, chat_template=None):
    kind = text_models.KINDS[name]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=text_models.train_tokenizer(kind), eos_token=kind.eos, unk_token=kind.unk
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def templates(chat_template, **arguments):
    return ChatTemplates(tokenizer_of("turns", chat_template), arguments)


def test_a_conversation_is_rendered_with_the_only_template():
    found = templates(text_models.CHAT).render(HISTORY, add_generation_prompt=True)
    assert found == "<|system|>Be brief.\n<|user|>What is it?\n<|assistant|>"


def test_a_started_answer_is_left_open():
    history = [*HISTORY, {"role": "assistant", "content": "It is"}]
    found = templates(text_models.CHAT).render(history, add_generation_prompt=False)
    assert found.endswith("<|assistant|>It is")


def test_the_selected_template_is_rendered():
    chat = templates({"default": "one", "other": "two"})
    assert chat.render(HISTORY, add_generation_prompt=True) == "one"
    chat.selected = "two"
    assert chat.render(HISTORY, add_generation_prompt=True) == "two"


def test_a_template_that_refuses_the_system_message_is_tried_without_it(caplog):
    found = templates(text_models.STRICT_CHAT).render(HISTORY, add_generation_prompt=True)
    assert found == "<|user|>What is it?\n<|assistant|>"
    assert "trying without the system message" in caplog.text


def test_no_template_is_an_error():
    with pytest.raises(OptionError, match="no chat template"):
        templates(None).render(HISTORY, add_generation_prompt=True)


def test_arguments_and_thinking_reach_the_template():
    chat = templates("{{ mood }} {{ enable_thinking }}", mood="calm")
    assert chat.render(HISTORY, add_generation_prompt=True) == "calm "
    chat.enable_thinking = True
    assert chat.render(HISTORY, add_generation_prompt=True) == "calm True"


def test_the_fingerprint_follows_everything_that_changes_the_text():
    chats = [templates("one"), templates("two"), templates("one", mood="calm"), templates("one")]
    chats[3].selected = "two"
    assert len({chat.fingerprint() for chat in chats}) == 4
    assert templates("one").fingerprint() == chats[0].fingerprint()


@pytest.mark.parametrize(
    ("name", "marker", "expected"),
    [
        ("bos", None, None),
        ("bos", 7, 7),
        ("bos", "<|/think|>", "id"),
        ("bos", " one", " one"),
        ("metaspace", "</think>", "</think>"),
        ("metaspace", "<unk>", "id"),
    ],
)
def test_the_end_of_reasoning_is_an_id_where_decoding_would_drop_it(name, marker, expected):
    encoder = Encoder(tokenizer_of(name), add_bos_token=None, prefix_token_id=None)
    if expected == "id":
        expected = encoder.tokenizer.convert_tokens_to_ids(marker)
    assert resolve_think_end(encoder, marker) == expected
