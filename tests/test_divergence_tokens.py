"""Two distributions at one position, against plain float64 arithmetic and torch's own functions."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.divergence import tokens

NONE = torch.empty(0, dtype=torch.long)


def logits(seed, rows=40, width=50, spread=3.0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * spread


def brute_force(p_logits, q_logits):
    """KL(p || q) of each row, from the same float32 logits, by the definition."""
    found = []
    for p_row, q_row in zip(p_logits.tolist(), q_logits.tolist(), strict=True):
        p_total = math.fsum(math.exp(x) for x in p_row)
        q_total = math.fsum(math.exp(x) for x in q_row)
        p = [math.exp(x) / p_total for x in p_row]
        q = [math.exp(x) / q_total for x in q_row]
        found.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return found


def compare(p_logits, q_logits, targets=NONE, **options):
    return tokens.compare(p_logits.log_softmax(-1), q_logits.log_softmax(-1), targets, **options)


@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4])
def test_divergence_is_brute_force_in_both_directions_however_near_the_models_are(distance):
    p_logits = logits(1)
    q_logits = p_logits + distance * logits(2, spread=1.0)
    for first, second in ((p_logits, q_logits), (q_logits, p_logits)):
        expected = brute_force(first, second)
        found = compare(first, second).kl.tolist()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-11)


def test_divergence_does_not_depend_on_how_the_float32_softmax_was_rounded():
    logprobs = logits(1).log_softmax(-1)
    shifted = (logprobs.double() + 3e-6).float()  # ten times its largest error
    assert tokens.compare(logprobs, shifted, NONE).kl.abs().max() < 1e-13


def test_both_distributions_are_normalised_over_the_vocabulary_they_have_in_common():
    p_logits, q_logits = logits(1), logits(2)
    padded = F.pad(q_logits, (0, 14), value=9.0)  # what a model says of padding
    found = tokens.compare(
        p_logits.log_softmax(-1), padded.log_softmax(-1)[:, : p_logits.shape[1]], NONE
    )
    assert found.kl.tolist() == pytest.approx(brute_force(p_logits, q_logits), rel=1e-5)


def test_what_cannot_happen_adds_nothing_and_what_only_the_candidate_rules_out_is_infinite():
    p_logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]])
    q_logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -math.inf]])
    assert compare(p_logits, q_logits).kl.tolist() == [pytest.approx(math.log(1.5)), math.inf]
    assert compare(p_logits[:1], p_logits[:1]).kl.tolist() == [pytest.approx(0.0, abs=1e-15)]


def test_what_is_not_finite_stays_so():
    p_logits, q_logits = logits(1, rows=4), logits(2, rows=4)
    p_logits[1, 7], q_logits[2, 0] = math.nan, math.inf
    assert compare(p_logits, q_logits).kl.isfinite().tolist() == [True, False, False, True]


def test_model_diffs_divergence_is_torchs_with_the_epsilon_in_the_first_model():
    baseline, candidate = logits(1), logits(2)
    expected = F.kl_div(
        (baseline.double().softmax(-1) + 1e-10).log(), candidate.double().softmax(-1),
        reduction="none",
    ).sum(-1)  # fmt: skip
    found = compare(baseline, candidate, as_model_diff=True).kl
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.tolist() != pytest.approx(compare(candidate, baseline).kl.tolist(), rel=1e-9)
    same = compare(baseline, baseline, as_model_diff=True).kl
    assert same.max() < 0
    assert same.min() > -50 * 1e-10 * 1.01


def test_agreement_counts_the_most_likely_tokens_in_order_up_to_the_first_that_differs():
    p_logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]).repeat(4, 1)
    q_logits = p_logits.clone()
    q_logits[1, [2, 3]] = q_logits[1, [3, 2]]  # third and fourth change places
    q_logits[2, [0, 1]] = q_logits[2, [1, 0]]
    q_logits[3, [4, 5]] = q_logits[3, [5, 4]]
    targets = torch.tensor([0, 1, 2, 3])
    assert compare(p_logits, q_logits, targets, top=5).agreeing.tolist() == [5, 2, 0, 4]
    assert compare(p_logits, q_logits, targets).agreeing.tolist() == [1, 1, 0, 1]


def test_of_equally_likely_tokens_the_first_counts_as_the_most_likely():
    p_logits = torch.tensor([[1.0, 2.0, 2.0]])
    q_logits = torch.tensor([[1.0, 2.0, 1.9]])
    assert compare(p_logits, q_logits, torch.tensor([0])).agreeing.tolist() == [1]


def test_targets_and_the_highest_probability_are_those_of_a_float64_softmax():
    p_logits, q_logits = logits(1), logits(2)
    targets = torch.arange(39)  # nothing follows the last position
    found = compare(p_logits, q_logits, targets)
    for own, values in ((found.baseline_logprob, p_logits), (found.candidate_logprob, q_logits)):
        expected = values.double().log_softmax(-1)[torch.arange(39), targets]
        assert own.tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-6)
    highest = p_logits.double().softmax(-1).amax(-1)
    assert found.top_probability.tolist() == pytest.approx(highest.tolist(), rel=1e-6)
    assert len(found.agreeing) == 39


@given(seed=st.integers(0, 200), kept=st.integers(1, 12), spread=st.floats(0.1, 30.0))
def test_the_bound_from_the_most_likely_tokens_is_never_above_divergence_and_ends_at_it(
    seed, kept, spread
):
    p = tokens.Distributions(logits(seed, rows=6, width=12, spread=spread).log_softmax(-1))
    q = tokens.Distributions(logits(seed + 999, rows=6, width=12, spread=spread).log_softmax(-1))
    whole = tokens.divergence(p, q)

    def bound(count):
        top = p.log_TV.topk(count).indices
        return tokens.top_divergence(p.log_TV.gather(-1, top), tokens.log_tail(p, top), top, q)

    assert (bound(kept) <= whole + 1e-12).all()
    assert (bound(kept) >= -1e-12).all()
    assert torch.allclose(bound(12), whole, rtol=1e-12, atol=1e-12)
    if kept < 12:
        assert (bound(kept) <= bound(kept + 1) + 1e-12).all()


def test_the_bound_is_the_divergence_with_all_other_tokens_as_one():
    p_logits, q_logits = logits(1, rows=1, width=5), logits(2, rows=1, width=5)
    p, q = (x.double().softmax(-1)[0].tolist() for x in (p_logits, q_logits))
    first, second = sorted(range(5), key=lambda token: -p[token])[:2]
    rest_p = math.fsum(p) - p[first] - p[second]
    rest_q = math.fsum(q) - q[first] - q[second]
    pairs = [(p[first], q[first]), (p[second], q[second]), (rest_p, rest_q)]
    expected = math.fsum(a * math.log(a / b) for a, b in pairs)
    own, other = tokens.Distributions(p_logits), tokens.Distributions(q_logits)
    top = torch.tensor([[first, second]])
    found = tokens.top_divergence(own.log_TV.gather(-1, top), tokens.log_tail(own, top), top, other)
    assert found.tolist() == pytest.approx([expected], rel=1e-12)
