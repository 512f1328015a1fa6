"""Whether an answer keeps the limits that its prompt sets. Standard library only."""

from lm_eval_exl2.tasks.quality.prompts import Prompt
from lm_eval_exl2.tasks.quality.text import sentences, tokens, words


def broken_limit(prompt: Prompt, answer: str) -> str:
    """Name the first limit that an answer breaks: sentences, words, words to avoid.

    Words are counted everywhere, sentences outside of code blocks. An answer of code alone has no
    sentence and keeps a minimum of 1.

    Returns:
        What was found, such as "5 sentences"; empty where all limits are kept.
    """
    count = len(sentences(answer))
    if count > prompt.max_sentences or count < prompt.min_sentences > 1:
        return f"{count} sentence{'' if count == 1 else 's'}"
    length = len(words(answer))
    if length > prompt.max_words:
        return f"{length} words"
    said = frozenset(tokens(answer))
    return next((f'"{word}" is said' for word in prompt.avoid if word.casefold() in said), "")
