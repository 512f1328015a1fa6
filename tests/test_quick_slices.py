"""Slices: drawn by the published rule, committed, and refused on data they were not drawn for."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.quick import slices

WHOLE = {
    "arc_challenge": 1172,
    "gsm8k": 1319,
    "hellaswag": 10042,
    "mmlu": 14042,
    "truthfulqa": 817,
    "winogrande": 1267,
}


def rank(task, part, index):
    """The rule as the module's docstring has it."""
    return sha256(f"exl2_quick:1:{task}:{part}:{index}".encode()).hexdigest()


def test_the_committed_documents_are_those_of_the_published_rule():
    for task, committed in slices.committed().items():
        owners = [(part, index) for part, size in committed.sizes.items() for index in range(size)]
        chosen = [owners[place] for place in committed.places]
        ranks = [rank(task, *owner) for owner in chosen]
        assert ranks == sorted(set(ranks)), f"{task} is not in the order of its digests"
        for part, size in committed.sizes.items():
            count = sum(owner[0] == part for owner in chosen)
            smallest = sorted(rank(task, part, index) for index in range(size))[:count]
            assert set(smallest) <= set(ranks), f"{task}: {part} has other documents"
        assert slices.draw(task, committed.sizes, len(committed.places)) == committed


def test_every_slice_has_at_least_200_documents_of_the_known_splits():
    found = slices.committed()
    assert {name: sum(found[name].sizes.values()) for name in WHOLE} == WHOLE
    assert all(len(found[name].places) >= 200 for name in WHOLE)


def test_mmlu_has_each_subject_in_proportion_to_its_size():
    mmlu = slices.find("mmlu")
    assert len(mmlu.sizes) == 57
    start = 0
    for subject, size in mmlu.sizes.items():
        drawn = sum(start <= place < start + size for place in mmlu.places)
        assert abs(drawn - 570 * size / 14042) < 1, subject
        assert drawn >= 1
        start += size


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([100], 7, [7]),
        ([50, 30, 20], 10, [5, 3, 2]),
        ([10, 10, 10], 4, [2, 1, 1]),  # the first of equal remainders
        ([1, 1, 98], 10, [1, 1, 8]),  # at least one; taken from who has most too many
        ([6, 6, 1], 13, [6, 6, 1]),
        ([1, 1, 1], 3, [1, 1, 1]),
    ],
)
def test_shares_worked_out_by_hand(sizes, count, expected):
    assert slices.allocate(sizes, count) == expected


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.data())
def test_shares_add_up_and_no_part_gives_more_than_it_has(sizes, data):
    count = data.draw(st.integers(len(sizes), sum(sizes)))
    given_out = slices.allocate(sizes, count)
    assert sum(given_out) == count
    for share, size in zip(given_out, sizes, strict=True):
        assert 1 <= share <= size
        assert share < count * size / sum(sizes) + 1


@pytest.mark.parametrize("count", [0, 1, 31])
def test_a_count_that_cannot_be_shared_is_refused(count):
    with pytest.raises(OptionError, match=r"choose between 2 and 30"):
        slices.draw("t", {"a": 10, "b": 20}, count)


def test_the_first_documents_of_a_slice_are_the_smaller_slice():
    large = slices.draw("t", {"test": 500}, 100).places
    assert slices.draw("t", {"test": 500}, 30).places == large[:30]
    assert large != sorted(large)


def test_data_of_another_size_is_refused():
    slices.check_sizes("gsm8k", {"test": 1319})
    with pytest.raises(OptionError, match=r"gsm8k: test has 1318 documents, .* drawn for 1319"):
        slices.check_sizes("gsm8k", {"test": 1318})
    with pytest.raises(OptionError, match="has None documents"):
        slices.check_sizes("gsm8k", {})


def test_an_unknown_slice_is_refused():
    with pytest.raises(OptionError, match=r"no slice 'gsm9k'.*mmlu"):
        slices.find("gsm9k")
