"""Resuming: a run that was killed ends like one that was not, and computes nothing twice.

The oracle is a run without any cache on an exact engine. Every request is its own, so a request
that is answered twice shows as a key that is in the journal twice.
"""

import logging
import pickle
import sqlite3
import time
from collections import Counter
from contextlib import closing
from itertools import islice

import pytest
import text_models
from asking import ask
from lm_eval.api.model import CacheHook, CachingLM, hash_args
from resumable import evaluate, kill_during, load, random_moments, requests

from lm_eval_exl2.errors import CacheMismatchError, CacheWriteError
from lm_eval_exl2.run_checks import Places, check_before

ASKED = requests(12)


@pytest.fixture(scope="module")
def lm(checkpoint):
    return load(checkpoint("plain"))


@pytest.fixture(scope="module")
def expected(lm):
    return evaluate(lm, ASKED)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache_rank0.db"


def keys(cache):
    """How often each answer is in the journal."""
    lines = cache.with_suffix(".jsonl").read_bytes().splitlines()[1:]
    return Counter(line.split(b",")[1] for line in lines)


def without_cache(lm):
    lm.set_cache_hook(CacheHook(None))
    return lm


def computed(lm, asked, cache):
    """Answers, and the positions that were forwarded for them."""
    before = lm.engine.counts.forwarded
    answers = evaluate(lm, asked, cache)
    return answers, lm.engine.counts.forwarded - before


def kill_and_resume(lm, expected, cache, seed, kills):
    start = time.perf_counter()
    evaluate(lm, ASKED, cache.with_name("timing_rank0.db"))
    length_s = time.perf_counter() - start
    killed = [
        kill_during(lambda: evaluate(lm, ASKED, cache), delay_s)
        for delay_s in islice(random_moments(seed, length_s), kills)
    ]
    assert evaluate(lm, ASKED, cache) == expected
    assert set(keys(cache).values()) == {1}
    assert len(keys(cache)) == sum(map(len, ASKED.values()))
    return sum(killed)


def test_killed_at_random_moments_a_run_ends_with_the_same_answers_each_computed_once(
    lm, expected, cache
):
    assert kill_and_resume(lm, expected, cache, seed=1, kills=3) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_killed_at_many_random_moments_a_run_ends_with_the_same_answers(lm, expected, cache, seed):
    kill_and_resume(lm, expected, cache, seed, kills=4)


def test_a_complete_cache_answers_everything_and_repeats_stay_different(lm, expected, cache):
    evaluate(lm, ASKED, cache)
    for _ in range(2):
        assert computed(lm, ASKED, cache) == (expected, 0)
    texts = expected["generate_until"][:6]
    assert len(set(texts)) == 6
    # The harness has written one answer for all repeats, and would give it to them.
    cached = CachingLM(lm, str(cache))
    cached.generate_until(ASKED["generate_until"])
    warm = ASKED["generate_until"][1]
    assert cached.dbdict[hash_args(warm.request_type, warm.args)] == texts[5]


def test_a_repeat_more_is_the_only_one_that_is_computed(lm, cache):
    how = {"until": [], "max_gen_toks": 4, "do_sample": True}
    asked = [ask("generate_until", "It was", how)] * 5
    CachingLM(lm, str(cache)).generate_until(asked[:3])
    resumed = CachingLM(lm, str(cache)).generate_until(asked)
    assert sorted(keys(cache).values()) == [1] * 5
    assert resumed == without_cache(lm).generate_until(asked)
    assert len(set(resumed)) == 5


def test_requests_beside_repeats_do_not_change_their_number(lm, cache):
    """Other tasks, another limit: a request's repeats are counted by themselves."""
    CachingLM(lm, str(cache)).generate_until(ASKED["generate_until"])
    some = ASKED["generate_until"][12:18]
    before = lm.engine.counts.forwarded
    resumed = CachingLM(lm, str(cache)).generate_until(some)
    assert lm.engine.counts.forwarded == before
    assert resumed == without_cache(lm).generate_until(some)


# -- damage ---------------------------------------------------------------------------------


def change_row(cache, value):
    """Put a value into the first row; return its key."""
    with closing(sqlite3.connect(cache)) as connection, connection:
        (key,) = connection.execute("SELECT key FROM unnamed").fetchone()
        connection.execute("UPDATE unnamed SET value = ? WHERE key = ?", (value, key))


@pytest.mark.parametrize(
    "value",
    [
        b"no pickle",
        17,
        pickle.dumps(None),
        pickle.dumps((float("nan"), True)),
        pickle.dumps((-1.0, True)),  # what no check of its own can find
    ],
    ids=repr,
)
def test_a_damaged_row_is_restored_with_one_warning(lm, expected, cache, caplog, value):
    evaluate(lm, ASKED, cache)
    change_row(cache, value)
    caplog.set_level(logging.WARNING, "lm_eval_exl2")
    assert computed(lm, ASKED, cache) == (expected, 0)
    warned = [r for r in caplog.records if r.name.startswith("lm_eval_exl2")]
    assert len(warned) == 1
    assert "cache_rank0.db is not as it was written; kept as cache_rank0.db.damaged" in caplog.text


def test_a_row_that_nobody_confirms_is_not_served(lm, expected, cache, caplog):
    evaluate(lm, ASKED, cache)
    journal = cache.with_suffix(".jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b"damaged\n", *lines[6:]]))
    answers, forwarded = computed(lm, ASKED, cache)
    assert answers == expected
    assert 0 < forwarded < 20


def test_a_damaged_file_that_the_harness_can_open_is_made_anew(lm, expected, cache, caplog):
    evaluate(lm, ASKED, cache)
    content = cache.read_bytes()
    cache.write_bytes(content[: -2 * 4096] + bytes(2 * 4096))
    assert computed(lm, ASKED, cache) == (expected, 0)
    assert caplog.text.count("is not as it was written; kept as") == 1
    assert cache.with_name("cache_rank0.db.damaged").exists()


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.95])
def test_a_file_cut_off_is_made_anew_before_the_harness_opens_it(
    lm, expected, cache, caplog, share
):
    evaluate(lm, ASKED, cache)
    content = cache.read_bytes()
    cache.write_bytes(content[: int(len(content) * share)])
    check_before(Places(None, cache))
    assert caplog.text.count("is not as it was written; kept as") == 1
    assert computed(lm, ASKED, cache) == (expected, 0)


def test_an_empty_or_missing_file_is_filled_from_the_journal(lm, expected, cache):
    evaluate(lm, ASKED, cache)
    cache.write_bytes(b"")
    assert computed(lm, ASKED, cache) == (expected, 0)
    cache.unlink()
    assert computed(lm, ASKED, cache) == (expected, 0)


def test_a_file_without_its_journal_is_of_unknown_origin(lm, cache):
    evaluate(lm, ASKED, cache)
    cache.with_suffix(".jsonl").unlink()
    for _ in range(2):
        with pytest.raises(CacheMismatchError, match="unknown origin"):
            evaluate(lm, ASKED, cache)


def test_a_cache_that_cannot_be_written_is_refused_when_it_is_opened(lm, cache):
    cache.with_suffix(".jsonl").mkdir()
    with pytest.raises(CacheWriteError, match="Is a directory"):
        CachingLM(lm, str(cache))


# -- whose answers --------------------------------------------------------------------------


def test_a_cache_under_another_chat_template_is_refused_and_another_choice_is_not(tmp_path):
    caches = []
    for name, template in (("one", {"default": "d", "terse": "t"}), ("two", "d")):
        folder = text_models.save("turns", tmp_path / name, chat_template=template)
        caches.append(load(folder))
    CachingLM(caches[0], str(tmp_path / "cache_rank0.db"))
    caches[0].chat_template("terse")
    CachingLM(caches[0], str(tmp_path / "cache_rank0.db"))
    with pytest.raises(CacheMismatchError, match="was made with "):
        CachingLM(caches[1], str(tmp_path / "cache_rank0.db"))
