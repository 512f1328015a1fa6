"""Finds where an answer leaves English. Standard library only."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from lm_eval_exl2.tasks.quality.text import split_code, tokens, word_set

_ENGLISH: Final = word_set(
    "the of and to in is that it for was on are as with his they be at one have this from or had "
    "by not but what some we can out other were all there when up use your how said an each she "
    "which do their if will way about many then them would so these her him has two more no could "
    "than been who its now did get may over only just also because into most you he i a while "
    "where after before very any such even does being between both through during until against"
)
# Common words of German, French, Spanish, Italian, Portuguese, Dutch and Swedish that are not
# among the English ones; accents do not matter, as a tokenizer may have lost them.
_FOREIGN: Final = word_set(
    "der das und ist nicht ein eine einen dem den zu mit von auf des sich auch es er wie dass wird "
    "le les la et est une un du pour que qui dans pas sur plus ce il el los las del y en una por "
    "con se su lo di che non per della sono gli al da em um uma os nao o e het een van dat niet op "
    "te zijn de och att det som ar av inte til"
)
_GREEK_WORD: Final = re.compile("[\u0370-\u03ff\u1f00-\u1fff]{3,}")
_ONE_LETTER_WORDS: Final = frozenset("aeiouy")
_SHORTEST: Final = 20
_WINDOW: Final = 30


def find_language_drift(text: str) -> str:
    """Find letters or a stretch of words that are not English.

    That is a single letter of another script than Latin and Greek; three Greek letters in a row; or
    30 words in a row (all, if there are 20 to 30) outside of code blocks of which less than 5 % are
    common English words, or less than 15 % while 15 % or more are common words of seven other
    languages. Numbers and names of variables are no words here. So a shorter stretch in another
    language with Latin letters is not found; a name in its own script, or a list of 30 names, is
    taken for drift.

    Returns:
        What shows it, or an empty text.
    """
    # Such as the micro sign, which becomes a Greek letter, and letters of formulas.
    plain = unicodedata.normalize("NFKC", text)
    for letter in filter(str.isalpha, plain):
        script = unicodedata.name(letter, "NONE").partition(" ")[0]
        if script not in ("LATIN", "GREEK", "MODIFIER"):
            return letter
    if found := _GREEK_WORD.search(plain):
        return found[0]
    return _find_stretch([word for word in tokens(split_code(text).prose) if _is_word(word)])


def _is_word(token: str) -> bool:
    has_digit = any(map(str.isdigit, token))
    return not has_digit and (len(token) > 1 or token in _ONE_LETTER_WORDS)


def _find_stretch(found: Sequence[str]) -> str:
    if len(found) < _SHORTEST:
        return ""
    size = min(_WINDOW, len(found))
    for start in range(len(found) - size + 1):
        window = found[start : start + size]
        english = sum(word in _ENGLISH for word in window) / size
        foreign = sum(word in _FOREIGN for word in window) / size
        if english < 0.05 or (english < 0.15 <= foreign):
            return " ".join(window[:5])
    return ""
