"""Corpus metrics: the harness's own aggregations and hand-made bootstraps are the oracles."""

import numpy as np
import pytest
from comparing import compare
from lm_eval.api.registry import get_aggregation
from run_files import Task, write_run

from lm_eval_exl2.compare.corpus import corpus_metric
from lm_eval_exl2.compare.statistics import corpus_drop

WORDS = [
    "the",
    "small",
    "model",
    "says",
    "what",
    "a",
    "large",
    "one",
    "said",
    "before",
    "in",
    "fewer",
    "bits",
]
RNG = np.random.default_rng(5)
TEXTS = [" ".join(RNG.choice(WORDS, RNG.integers(4, 12))) for _ in range(30)]
CHANGED = [
    " ".join(RNG.permutation(text.split())) if at % 3 else text for at, text in enumerate(TEXTS)
]
PAIRS = list(zip(TEXTS, CHANGED, strict=True))
TWO_REFERENCES = [[[one, two], two] for one, two in PAIRS]
FORECASTS = [[at % 2, [p, 1 - p]] for at, p in enumerate(RNG.random(9))]
LABELS = RNG.integers(0, 2, (40, 2)).tolist()
THREE = RNG.integers(0, 3, (40, 2)).tolist()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("f1", LABELS),
        ("f1", [[0, 0], [0, 0]]),
        ("f1", [[1, 0], [0, 1]]),
        ("matthews_corrcoef", LABELS),
        ("matthews_corrcoef", THREE),
        ("matthews_corrcoef", [[1, 1], [1, 1]]),
        ("brier_score", FORECASTS),
        *((name, PAIRS) for name in ("bleu", "chrf", "chrf++", "ter")),
        ("bleu", TWO_REFERENCES),
        ("bleu", [[[text], [text]] for text in TEXTS]),
    ],
)
@pytest.mark.filterwarnings("ignore:F-score is ill-defined")  # sklearn, where nothing is 1
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_a_corpus_score_is_the_harness_aggregation_of_the_same_values(name, values):
    metric = corpus_metric(name)
    expected = get_aggregation(name)([tuple(value) for value in values])
    assert metric.score(metric.rows(values).sum(axis=0)) == pytest.approx(expected, abs=1e-12)


def test_other_aggregations_are_no_corpus_metrics():
    assert corpus_metric("mean") is corpus_metric("median") is corpus_metric("") is None


def _mean(rows):
    return float(rows[:, 0].mean())


def test_the_bounds_of_a_mean_are_those_of_the_normal_law():
    rng = np.random.default_rng(0)
    before = rng.normal(0.6, 0.1, (400, 1))
    after = before - rng.normal(0.02, 0.05, (400, 1))
    drops = (before - after)[:, 0]
    away = 1.645 * drops.std(ddof=1) / 20
    found = corpus_drop(before, after, _mean)
    assert found.lower == pytest.approx(drops.mean() - away, abs=0.1 * away)
    assert found.upper == pytest.approx(drops.mean() + away, abs=0.1 * away)
    wider = corpus_drop(before, after, _mean, 0.025)
    assert wider.upper - drops.mean() == pytest.approx(1.96 / 1.645 * away, abs=0.1 * away)
    ratio = corpus_drop(before, after, _mean, relative=True)
    assert ratio.upper == pytest.approx(found.upper / before.mean(), rel=0.05)


def test_what_no_draw_changes_has_no_bounds():
    rows = np.ones((20, 1))
    assert corpus_drop(rows, rows, _mean) == (-np.inf, np.inf)
    assert corpus_drop(rows[:1], rows[:1], _mean) == (-np.inf, np.inf)


def _translations(folder, model, texts):
    config = {"metric_list": [{"metric": "bleu"}]}
    rows = [
        {"metrics": {"bleu": [reference, text]}, "filtered_resps": [text]}
        for reference, text in zip(TEXTS, texts, strict=True)
    ]
    metric = corpus_metric("bleu")
    score = metric.score(metric.rows(list(zip(TEXTS, texts, strict=True))).sum(axis=0))
    task = Task("wmt", rows, config=config, scores={"bleu": score}, higher={"bleu": True})
    return write_run(folder / model, [task], model=model)


def test_bleu_is_compared_by_drawing_documents_again_and_kept_out_of_the_average(tmp_path):
    base = _translations(tmp_path, "base", TEXTS)
    cand = _translations(tmp_path, "cand", CHANGED)
    (found,) = compare(base, cand).candidates
    (unit,) = found.units
    assert (unit.kind, unit.baseline.estimate) == ("corpus", pytest.approx(100))
    assert unit.difference.estimate == pytest.approx(unit.candidate.estimate - 100)
    assert unit.difference.lower < unit.difference.estimate < unit.difference.upper < 0
    assert unit.relative.estimate == pytest.approx(100 - unit.candidate.estimate)
    assert unit.relative.lower < unit.relative.estimate < unit.relative.upper
    assert unit.absolute is unit.flips is None  # BLEU is no share, so it has no points
    assert unit.left_out == "a corpus metric, which is no mean over documents"
    assert found.verdict.state == "cannot compare"
    (same,) = compare(base, base).candidates[0].units
    assert (same.difference.estimate, same.difference.lower) == (0, None)


def test_points_of_a_corpus_score_have_one_sided_bounds(tmp_path):
    def run(name, wrong):
        pairs = [[at % 2, (at + (at % wrong == 0)) % 2] for at in range(200)]
        metric = corpus_metric("f1")
        score = metric.score(metric.rows(pairs).sum(axis=0))
        rows = [{"metrics": {"f1": pair}} for pair in pairs]
        task = Task("t", rows, scores={"f1": score}, higher={"f1": True},
                    config={"metric_list": [{"metric": "f1"}]})  # fmt: skip
        return write_run(tmp_path / name, [task], model=name)

    (unit,) = compare(run("base", 20), run("cand", 7)).candidates[0].units
    assert unit.absolute.estimate == pytest.approx(-100 * unit.difference.estimate)
    # The verdict's bounds are one-sided 95 %, so narrower than the interval shown.
    assert unit.absolute.upper < -100 * unit.difference.lower
    assert unit.absolute.lower > -100 * unit.difference.upper
