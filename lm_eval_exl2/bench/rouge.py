"""Texts and references -> ROUGE per document, as MLPerf Inference's accuracy scripts have it.

The scripts (mlcommons/inference, language/llama3.1-8b/evaluation.py and its siblings) strip both
texts, put each sentence on its own line, and call the metric `rouge` of `evaluate` with
use_stemmer=True and use_aggregator=False: rouge-score's `RougeScorer`, F-measure per document.
Their score is the mean times 100, rounded to 4 digits. Of the kinds only rougeLsum sees lines;
rouge1, rouge2 and rougeL are of the whole text, so they need no sentences.

ROUGE sees the letters a to z and digits alone: a text without them scores 0, even beside itself.
Knows nothing of baselines or of what is good enough.
"""

# nltk and rouge-score ship without types:
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lm_eval_exl2.errors import MissingDependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

KINDS: Final = ("rouge1", "rouge2", "rougeL")
BY_SENTENCE: Final = "rougeLsum"
"""The kind that needs texts with one sentence a line."""
DIGITS: Final = 4


def rouge_by_document(
    references: Sequence[Sequence[str]], texts: Sequence[str], kinds: Sequence[str] = KINDS
) -> dict[str, Floats]:
    """Compare each text with its references.

    Args:
        references: One or more per document; by kind the one counts that gives the highest score.
        texts: One per document, in the same order.
        kinds: rouge-score's names.

    Returns:
        By kind the F-measures times 100, one per document.
    """
    scorer = _scorer(tuple(kinds))
    found = [scorer.score_multi(each, text) for each, text in zip(references, texts, strict=True)]
    return {
        kind: np.array([100 * score[kind].fmeasure for score in found], np.float64)
        for kind in kinds
    }


def mean_score(scores: Floats) -> float:
    """The score of a data set, rounded as MLPerf's scripts round it."""
    return round(float(np.mean(scores)), DIGITS)


def has_words(text: str) -> bool:
    """Whether there is anything in a text that ROUGE sees."""
    return any(each.isascii() and each.isalnum() for each in text.lower())


def by_sentence(texts: Iterable[str]) -> list[str]:
    """Strip texts and put each sentence on its own line, as MLPerf's scripts do.

    Raises:
        MissingDependencyError: nltk's sentence splitter has not been downloaded.
    """
    from nltk import sent_tokenize

    try:
        return ["\n".join(sent_tokenize(text.strip())) for text in texts]
    except LookupError as error:
        raise MissingDependencyError(
            "this rule counts by sentences, which nltk's data `punkt_tab` tell apart, and they "
            "were not found; run: python -m nltk.downloader punkt_tab"
        ) from error


@cache
def _scorer(kinds: tuple[str, ...]) -> Any:
    # nltk, which it imports, takes a second.
    from rouge_score import rouge_scorer, tokenizers

    return rouge_scorer.RougeScorer(
        list(kinds), tokenizer=tokenizers.DefaultTokenizer(use_stemmer=True)
    )
