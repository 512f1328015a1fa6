"""How close an answer is to a baseline's answer: ROUGE-L and sentence BLEU, both from 0 to 1.

Neither says which of the two is better. An empty answer is close to nothing, not even to an empty
one.
"""

from functools import cache
from typing import Any


def rouge_l(reference: str, answer: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), without stemming."""
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


def sentence_bleu(reference: str, answer: str) -> float:
    """Sentence BLEU of sacrebleu (Post 2018) divided by 100: 13a words, exponential smoothing.

    Of n-grams up to 4 those are used that the answer is long enough to have.
    """
    import sacrebleu

    return sacrebleu.sentence_bleu(answer, [reference]).score / 100


@cache
def _scorer() -> Any:
    # Neither ships types; nltk, which it imports, takes a second.
    from rouge_score import rouge_scorer, tokenizers  # pyright: ignore[reportMissingTypeStubs]

    tokenizer = tokenizers.DefaultTokenizer(use_stemmer=False)
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=tokenizer)
