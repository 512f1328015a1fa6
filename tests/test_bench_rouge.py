"""ROUGE as MLPerf's scripts count it; the expected numbers are counted by hand."""

from fractions import Fraction as F

import nltk
import numpy as np
import pytest

from lm_eval_exl2.bench.rouge import by_sentence, has_words, mean_score, rouge_by_document
from lm_eval_exl2.errors import MissingDependencyError

# F = 2 * shared / (words of the reference + words of the answer), for words, pairs of neighbours
# and the longest common subsequence.
CASES = [
    # 8 and 7 words. Shared: the, miller, bread, the, bridge. Of 7 and 6 pairs: the miller.
    (
        "The miller sells bread at the old bridge.",
        "The miller sold bread near the bridge.",
        (F(2 * 5, 8 + 7), F(2 * 1, 7 + 6), F(2 * 5, 8 + 7)),
    ),
    # Moved: all 5 words, 3 of 4 pairs, red boats leave in order.
    (
        "Red boats leave before dawn",
        "before dawn, red boats leave",
        (F(1), F(2 * 3, 4 + 4), F(2 * 3, 5 + 5)),
    ),
    # Stems: walked, walks -> walk; dogs -> dog. Words of up to 3 letters stay.
    ("She walked the dogs", "she walks the dog", (F(1), F(1), F(1))),
    # A word counts no more often than the reference has it.
    ("the cat", "the the the the", (F(2 * 1, 2 + 4), F(0), F(2 * 1, 2 + 4))),
    # One word has no pairs, not even beside itself.
    ("Yes.", "yes", (F(1), F(0), F(1))),
    ("a key", "", (F(0), F(0), F(0))),
    # Lines change nothing.
    ("a fox ran\nthe dog slept", "the dog slept\na fox ran", (F(1), F(4 * 2, 10), F(6, 12))),
]


@pytest.mark.parametrize(("reference", "answer", "expected"), CASES)
def test_rouge_is_what_counting_by_hand_gives(reference, answer, expected):
    found = rouge_by_document([(reference,)], [answer])
    assert [float(found[kind][0]) for kind in ("rouge1", "rouge2", "rougeL")] == pytest.approx(
        [float(100 * each) for each in expected]
    )


def test_rouge_lsum_joins_the_subsequences_of_sentences():
    texts = ["the dog slept\na fox ran"]
    found = rouge_by_document([("a fox ran\nthe dog slept",)], texts, ["rougeL", "rougeLsum"])
    assert found["rougeL"][0] == pytest.approx(50)
    assert found["rougeLsum"][0] == pytest.approx(100)


def test_of_several_references_the_nearest_counts_for_each_kind():
    # rouge1: 2 of 2 and 3; 2 of 2 and 2. rouge2: 1 of 1 and 2; 0.
    found = rouge_by_document([("old red boat", "boat red")], ["red boat"])
    assert found["rouge1"][0] == pytest.approx(100)
    assert found["rouge2"][0] == pytest.approx(float(F(200 * 1, 2 + 1)))


def test_the_score_of_a_data_set_is_a_mean_with_four_digits():
    assert mean_score(np.array([100.0, 0.0, 0.0])) == 33.3333
    assert mean_score(np.array([200 / 3])) == 66.6667


def test_what_rouge_cannot_see_is_known():
    assert has_words("No. 7")
    assert has_words("É2")
    assert not has_words("Мост, 橋!")
    assert rouge_by_document([("橋",)], ["橋"])["rouge1"][0] == 0


def test_sentences_need_the_splitters_data_and_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(MissingDependencyError, match=r"nltk\.downloader punkt_tab"):
        by_sentence(["One. Two."])


def test_sentences_are_stripped_and_stand_on_lines(monkeypatch):
    monkeypatch.setattr(nltk, "sent_tokenize", lambda text: text.split("  "))
    assert by_sentence([" One.  Two. \n"]) == ["One.\nTwo."]
