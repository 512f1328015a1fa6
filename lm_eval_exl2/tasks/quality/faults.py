"""Finds what a damaged model writes: leaked tokens, parts of the prompt, emoji, half texts.

Each function returns the piece of text that shows the fault, or an empty text. Standard library
only. Each rule can be wrong in either direction, as it says.
"""

import re
from collections.abc import Sequence
from typing import Final

from lm_eval_exl2.tasks.quality.prompts import Prompt
from lm_eval_exl2.tasks.quality.text import CLOSING, split_code, tokens, word_set, words

# Spelled-out control tokens of common tokenizers, with and without their brackets, marks of
# byte-level and sentencepiece vocabularies, and bytes that are no text (U+FFFD).
_SPECIAL_TOKEN: Final = re.compile(
    r"<[|\uff5c][^<>\s]{1,40}?[|\uff5c]>|</?s>|<</?SYS>>|\[/?INST\]|</?(?:bos|eos|pad|unk|mask|sep|cls)>"
    r"|\[(?:PAD|UNK|MASK|SEP|CLS|BOS|EOS)\]|<(?:start|end)_of_(?:turn|text)>|<0x[0-9A-F]{2}>"
    r"|<(?:unused|extra_id_)\d+>|<end_?of_?text>|\bim_(?:start|sep|end)\b"
    r"|[\u2581\u0120\u010a\ufffd]"
)
_TURN_LABEL: Final = re.compile(
    r"(?:Question|User|Assistant):|^\W{0,4}(?:Human|System|Instruction):"
    r"|^\W{0,4}(?:QUESTION|USER|ASSISTANT|HUMAN|SYSTEM|INSTRUCTION)S?:"
    r"|^#{1,6} ?(?:Response|Instruction|Question|Answer|User|Assistant|Human|System)\b"
    r"|(?:^|[.!?])(?:user|assistant|system)[ \t]*$",
    re.MULTILINE,
)
_ANSWER_LABEL: Final = re.compile(r"\b(?:Answer|ANSWER):")
# Pictures and their joiners; chess, musical and planet signs and plain check marks are text.
_EMOJI: Final = re.compile(
    "[\U0001f000-\U0001faff\u231a\u231b\u23e9-\u23f3\u23f8-\u23fa\u2600-\u2604\u2607-\u263e"
    "\u2648-\u2653\u2670-\u2712\u2715\u2716\u2719-\u275a\u275f-\u2767\u2795-\u27bf\u2b05-\u2b07"
    "\u2b1b\u2b1c\u2b50\u2b55\ufe0f\u20e3]"
)
_HANGING: Final = word_set(
    "a an the and or but nor of to with from because although which whose than as into"
)


def find_special_token(text: str) -> str:
    """Find a control token that is spelled out, or broken bytes.

    Decoding usually drops a control token that the tokenizer knows as one, so what is seen here was
    written in ordinary tokens or belongs to another model's vocabulary.
    """
    found = _SPECIAL_TOKEN.search(text)
    return found[0] if found else ""


def find_prompt_leak(prompt: Prompt, text: str) -> str:
    """Find a part of the prompt or of a conversation's frame.

    That is a label of a turn ("Question:", "User:", "### Response", "assistant" alone in a line),
    "Answer:" at least twice, 6 words in a row of the instruction, or 16 of the prompt. Of a shorter
    instruction or prompt all words count, if there are 4. Code and what is in double quotes may be
    quoted.
    """
    prose = split_code(text).prose
    if found := _TURN_LABEL.search(prose):
        return found[0].strip()
    if len(labels := _ANSWER_LABEL.findall(prose)) > 1:
        return f"{labels[0]} ({len(labels)} times)"
    question = re.sub(r'"[^"]*"', " ", split_code(prompt.prompt).prose)
    said = tokens(prose)
    return _shared(tokens(prompt.instruction), said, 6) or _shared(tokens(question), said, 16)


def find_emoji(text: str) -> str:
    """Find an emoji or pictograph."""
    found = _EMOJI.search(text)
    return found[0] if found else ""


def find_truncation(text: str) -> str:
    """Find a text that ends before its end.

    The harness does not say why a text ended. What is taken for half a text: an open code block; a
    last word that cannot end a sentence ("the", "because"); a last sign that cannot (comma, colon,
    opening bracket, hyphen); or a last line of at least 8 words without an end mark that is neither
    an item of a list nor an equation. So a text that was cut right after a full stop, or in a short
    line, is not found, and a writer who leaves out the last full stop is taken for cut off.
    """
    parts = split_code(text)
    if parts.is_open:
        return "open code block"
    body = text.rstrip()
    if not body or body.endswith("```"):
        return ""
    line = body.splitlines()[-1].strip()
    end = line.rstrip(CLOSING + "$\\ ")  # of formulas, too
    found = words(end)
    if end.endswith((".", "!", "?", "…")) or not found:
        return ""
    is_free = "=" in line or re.match(r"(?:[-*+•|]|\d{1,3}[.)])\s", line)
    is_hanging = len(found) > 1 and found[-1].casefold() in _HANGING
    if is_hanging or end[-1] in ",;:([{-\u2013\u2014=+/&<" or (len(found) >= 8 and not is_free):
        return " ".join(found[-3:])
    return ""


def _shared(source: Sequence[str], said: Sequence[str], length: int) -> str:
    """The first run of words of a source that is said, too."""
    length = min(length, len(source))
    if length < 4:
        return ""
    runs = {tuple(said[start : start + length]) for start in range(len(said) - length + 1)}
    for start in range(len(source) - length + 1):
        if tuple(source[start : start + length]) in runs:
            return " ".join(source[start : start + length])
    return ""
