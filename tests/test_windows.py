"""Cutting text into windows, and perplexity with its standard error, against slow twins."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.windows import (
    PROTOCOLS,
    Sizes,
    Window,
    choose_sizes,
    count_overlaps,
    cut_chart,
    cut_disjoint,
    cut_sliding,
    cut_strided,
    find_protocol,
    perplexity,
    perplexity_stderr,
)

SIZES = st.builds(
    lambda window, share, rows: Sizes(window, max(1, window * share // 100), rows),
    st.integers(2, 12),
    st.integers(1, 99),
    st.none() | st.integers(1, 5),
).filter(lambda sizes: sizes.stride < sizes.window)
TOKENS = st.integers(1, 60)


def positions(windows):
    """Positions that are scored, window by window."""
    return [list(range(window.end - window.targets, window.end)) for window in windows]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (cut_disjoint, [(0, 4, 3), (4, 8, 3)]),
        (cut_chart, [(0, 4, 3), (3, 7, 3)]),  # 6 to 10 ends with the text and is left out
        (cut_strided, [(0, 4, 3), (3, 7, 3), (6, 10, 3)]),
        (cut_sliding, [(0, 4, 3), (3, 7, 3), (6, 10, 3)]),
    ],
)
def test_ten_tokens_in_windows_of_four_by_hand(cut, expected):
    assert cut(10, Sizes(4, 3, None)) == [Window(*each) for each in expected]


def test_tails_by_hand():
    assert cut_disjoint(11, Sizes(4, 4, None)) == [(0, 4, 3), (4, 8, 3)]
    assert cut_strided(11, Sizes(4, 2, None)) == [(0, 4, 3), (2, 6, 2), (4, 8, 2), (6, 10, 2)]
    assert cut_sliding(11, Sizes(4, 2, None))[-2:] == [(6, 10, 2), (8, 11, 1)]
    assert cut_sliding(3, Sizes(4, 2, None)) == [(0, 3, 2)]
    assert [cut(3, Sizes(4, 2, None)) for cut in (cut_disjoint, cut_chart, cut_strided)] == [[]] * 3


@given(TOKENS, SIZES)
def test_gptq_windows_score_all_but_each_first_token(tokens, sizes):
    full = tokens // sizes.window
    expected = [
        [at for at in range(tokens) if at // sizes.window == number and at % sizes.window]
        for number in range(full)
    ]
    assert positions(cut_disjoint(tokens, sizes)) == expected[: sizes.rows]


@given(TOKENS, SIZES)
def test_chart_rows_are_those_of_exllamav3s_loop(tokens, sizes):
    rows, start = [], 0
    while start < tokens - sizes.window and (sizes.rows is None or len(rows) < sizes.rows):
        rows.append(list(range(start + 1, start + sizes.window)))
        start += sizes.stride
    assert positions(cut_chart(tokens, sizes)) == rows


@given(TOKENS, SIZES)
def test_strided_rows_score_what_exllamav2s_slices_leave(tokens, sizes):
    """Slices as its `-sp` takes them: lengths b, then stride; logits without the last one."""
    rows, start = [], 0
    while start + sizes.window <= tokens and (sizes.rows is None or len(rows) < sizes.rows):
        ids = list(range(start, start + sizes.window))
        length = start + sizes.window if start == 0 else sizes.stride
        logits_of = ids[:-1]
        left_out = max(len(logits_of) - length, 0)
        kept, targets = logits_of[left_out:], ids[left_out:][1:]
        assert [at + 1 for at in kept] == targets
        rows.append(targets)
        start += sizes.stride
    assert positions(cut_strided(tokens, sizes)) == rows


@given(TOKENS, SIZES)
def test_sliding_windows_score_each_token_once_with_all_the_context_there_is(tokens, sizes):
    windows = cut_sliding(tokens, sizes._replace(rows=None))
    assert [at for scored in positions(windows) for at in scored] == list(range(1, tokens))
    for window in windows:
        assert window.end - window.start <= sizes.window
        assert window.targets < window.end - window.start
        assert window.targets <= max(sizes.stride, sizes.window - 1 if window.start == 0 else 0)
    assert cut_sliding(tokens, sizes) == windows[: sizes.rows]


@given(TOKENS, SIZES, st.sampled_from([cut_disjoint, cut_chart, cut_strided, cut_sliding]))
def test_overlaps_are_the_most_windows_that_score_a_position(tokens, sizes, cut):
    windows = cut(tokens, sizes._replace(rows=None))
    scored = [at for each in positions(windows) for at in each]
    if scored:
        assert count_overlaps(windows) == max(map(scored.count, scored))


def test_perplexity_of_two_windows_by_hand():
    items = [(3 * math.log(2), 3), (3 * math.log(8), 3)]
    assert perplexity(items) == pytest.approx(4)  # exp of the mean of two window means
    assert perplexity([(math.log(2), 1), (3 * math.log(4), 3)]) == pytest.approx(2 ** (7 / 4))


def far_apart(items):
    """Windows too far from each other to correlate."""
    return [(loss, targets, at * 10**6) for at, (loss, targets) in enumerate(items)]


def test_stderr_of_equal_windows_is_the_one_of_their_means():
    means = [2.0, 2.5, 1.0, 3.0, 2.2]
    expected = math.exp(statistics.mean(means)) * statistics.stdev(means) / math.sqrt(5)
    items = far_apart([(7 * each, 7) for each in means])
    assert perplexity_stderr(items) == pytest.approx(expected)


def test_stderr_of_unequal_windows_is_that_of_a_ratio():
    """Cochran's formula, written out: residuals loss - mean * targets over mean targets."""
    items = far_apart([(2.0, 1), (9.0, 3), (3.0, 2)])
    residuals = [2 - 7 / 3 * 1, 9 - 7 / 3 * 3, 3 - 7 / 3 * 2]  # mean loss 14 / 6
    variance = sum(each**2 for each in residuals) / 2 / 3 / 2**2
    assert perplexity_stderr(items) == pytest.approx(math.exp(14 / 6) * math.sqrt(variance))


def test_one_window_has_no_stderr():
    assert math.isnan(perplexity_stderr([(2.0, 3, 0)]))
    assert math.isnan(perplexity_stderr([(2.0, 3, 0)], overlaps=4))


def test_stderr_of_overlapping_windows_is_what_repeating_the_text_shows():
    """20 windows of 4 blocks, a new block each: the spread of the mean over many such texts."""
    blocks = np.random.default_rng(7).normal(0, 0.1, (4000, 23))
    means = 1 + sum(blocks[:, first : first + 20] for first in range(4)) / 4
    true = np.exp(means.mean(axis=1)).std()
    texts = [far_apart([(each, 1) for each in text]) for text in means[:500]]
    found = [perplexity_stderr(text, overlaps=4) for text in texts]
    naive = [perplexity_stderr(text) for text in texts]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(true, rel=0.05)
    assert np.sqrt(np.mean(np.square(naive))) < 0.55 * true


def articles(random, tokens=340_000):
    """Losses of tokens whose mean changes from article to article, as real text has it."""
    lengths = random.gamma(3, 1800, 200).astype(int) + 200
    level = np.repeat(random.normal(3, 0.3, 200), lengths)[:tokens]
    return level + random.normal(0, 2, tokens)


@pytest.mark.parametrize("window", [512, 2048])
def test_stderr_is_nearly_right_for_text_whose_articles_differ(window):
    """Against the spread of the mean over many such texts; windows taken alone are far off."""
    random = np.random.default_rng(3)
    texts = [articles(random) for _ in range(60)]
    true = np.std([text.mean() for text in texts])
    cuts = [
        [
            (float(text[at : at + window].sum()), window, at)
            for at in range(0, len(text) - window, window)
        ]
        for text in texts[:20]
    ]
    found = [perplexity_stderr(cut) / perplexity([item[:2] for item in cut]) for cut in cuts]
    alone = [
        perplexity_stderr(far_apart([item[:2] for item in cut]))
        / perplexity([item[:2] for item in cut])
        for cut in cuts
    ]
    assert 0.75 * true < np.mean(found) < 1.1 * true
    assert np.mean(alone) < 0.7 * true
    shuffled = sorted(cuts[0], key=lambda item: item[0])
    assert perplexity_stderr(shuffled) == pytest.approx(perplexity_stderr(cuts[0]))


def test_a_loss_too_large_for_a_number_is_infinite():
    assert perplexity([(800.0, 1)]) == math.inf


def test_protocols_tokenize_and_begin_as_their_sources_do():
    assert {
        name: (each.tokenized, each.bos, each.rows_required) for name, each in PROTOCOLS.items()
    } == {
        "gptq": ("once", "tokenizer", False),
        "exllamav3-chart": ("once", "tokenizer", False),
        "exllamav2-ed": ("by row", "architecture", True),
        "exllamav2-sp": ("once", "none", False),
        "sliding": ("once", "tokenizer", False),
    }


def test_usual_sizes_are_those_published():
    def sizes(name, **arguments):
        return choose_sizes(PROTOCOLS[name], context=4096, **arguments)

    assert sizes("gptq") == (2048, 2048, None)
    assert sizes("exllamav3-chart") == (2048, 512, 20)
    assert sizes("exllamav2-ed") == (2048, 2048, 128)
    assert sizes("exllamav2-sp") == (4096, 512, None)
    assert sizes("sliding") == (2048, 512, None)
    assert sizes("gptq", window=512) == (512, 512, None)
    assert sizes("sliding", window=8, stride=3, rows=2) == (8, 3, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("gptq", {"window": 4097}, "longer than the model's context of 4096"),
        ("gptq", {"window": 1}, "at least 2"),
        ("gptq", {"window": "2048"}, "expected an integer"),
        ("gptq", {"rows": True}, "expected an integer"),
        ("gptq", {"stride": 512}, "do not overlap"),
        ("sliding", {"stride": 2048}, "smaller than window"),
        ("sliding", {"stride": 0}, "at least 1"),
        ("exllamav2-sp", {"context": None}, "is not known"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name, arguments, said):
    with pytest.raises(OptionError, match=said):
        choose_sizes(PROTOCOLS[name], **{"context": 4096, **arguments})


def test_an_unknown_protocol_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match=r"'awq'.*gptq.*sliding"):
        find_protocol("awq")
    with pytest.raises(OptionError):
        find_protocol(["gptq"])
