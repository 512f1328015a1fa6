"""Policies and verdicts: bands, caps, evidence, states and exit codes, by hand."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.compare.policy import EXIT_CODES, SHIPPED, read_profile
from lm_eval_exl2.compare.verdict import NOT_SETTLED, REFUTED, SUPPORTED, Drop, decide
from lm_eval_exl2.errors import OptionError

GENERAL = read_profile("general")
TUTOR = read_profile("math-tutor")


def tight(estimate, **more):
    """A drop that is known exactly."""
    return Drop(estimate, estimate, estimate, **more)


def tasks(**drops):
    return [tight(drop, benchmark=name, name=name) for name, drop in drops.items()]


@pytest.mark.parametrize(
    ("drop", "state"),
    [
        (-1, "ship"),
        (0.999, "ship"),
        (1, "acceptable with monitoring"),
        (2.999, "acceptable with monitoring"),
        (3, "marginal"),
        (4.999, "marginal"),
        (5, "do not ship"),
        (60, "do not ship"),
    ],
)
def test_bands_of_the_general_profile_have_their_edges_on_the_worse_side(drop, state):
    assert GENERAL.band(drop).state == state


def test_gsm8k_4_mmlu_1_hellaswag_1_is_acceptable_in_general_and_not_for_a_tutor():
    drops = tasks(gsm8k=4, mmlu=1, hellaswag=1)
    average = tight((4 + 1 + 1) / 3)
    general, tutor = decide(GENERAL, average, drops), decide(TUTOR, average, drops)
    assert general.band == general.state == "acceptable with monitoring"
    assert tutor.band == tutor.state == "do not ship"
    assert [(each.name, each.evidence) for each in tutor.demands] == [
        ("average", SUPPORTED),
        ("gsm8k", REFUTED),
    ]


@pytest.mark.parametrize(
    ("average", "state", "evidence"),
    [
        (Drop(0.8, -0.2, 1.8), "ship", SUPPORTED),
        (Drop(2.0, 1.1, 2.99), "acceptable with monitoring", SUPPORTED),
        (Drop(0.8, -2.4, 4.0), "inconclusive", NOT_SETTLED),
        (Drop(0.8, -2.4, 3.0), "inconclusive", NOT_SETTLED),  # U < G, not U <= G
        (Drop(3.4, 2.9, 3.9), "inconclusive", NOT_SETTLED),
        (Drop(3.4, 3.0, 3.9), "marginal", REFUTED),
        (Drop(6.0, 5.5, 6.5), "do not ship", REFUTED),
        (Drop(0.8, None, None), "inconclusive", NOT_SETTLED),
        (Drop(0.1, 0.0, 0.2, reason_not_settled="--limit"), "inconclusive", NOT_SETTLED),
    ],
)
def test_evidence_decides_the_general_profile(average, state, evidence):
    found = decide(GENERAL, average, [])
    assert (found.state, found.evidence) == (state, evidence)


def test_what_is_open_says_how_bad_it_may_be():
    found = decide(GENERAL, Drop(0.8, -2.4, 4.0), [])
    assert "best estimate 0.8 % (ship), but a drop up to 4 % is not ruled out" in found.explanation


def test_a_refuted_cap_overrides_a_supported_average():
    found = decide(TUTOR, tight(0.5), tasks(gsm8k=2))
    assert found.state == "do not ship"
    assert decide(TUTOR, tight(0.5), tasks(gsm8k=1.9)).state == "ship"


def test_an_open_cap_leaves_everything_open():
    drops = [Drop(1.0, -0.5, 2.5, benchmark="gsm8k", name="gsm8k")]
    assert decide(TUTOR, tight(0.5), drops).state == "inconclusive"


def test_a_missing_benchmark_cannot_be_compared():
    found = decide(TUTOR, tight(0.5), tasks(mmlu=0))
    assert found.state == "cannot compare"
    assert found.missing == ["gsm8k"]
    assert decide(GENERAL, None, []).state == "cannot compare"


def test_mbpp_counts_for_code_only_when_it_was_run():
    help_ = read_profile("code-help")
    assert decide(help_, tight(0.5), tasks(humaneval=1)).state == "ship"
    assert decide(help_, tight(0.5), tasks(humaneval=1, mbpp=3)).state == "do not ship"


def test_mlperf_profiles_decide_every_task_by_the_estimate():
    profile = read_profile("mlperf-99")
    wide = [Drop(0.9, -5, 7, benchmark="a", name="a"), Drop(-2, -9, 5, benchmark="b", name="b")]
    found = decide(profile, None, wide)
    assert found.state == "ship"
    assert "not statistically supported" in found.explanation
    assert decide(profile, None, [*wide, *tasks(c=1)]).state == "do not ship"
    assert decide(read_profile("mlperf-99.9"), None, wide).state == "do not ship"


def test_deciding_by_the_estimate_is_labelled():
    profile = read_profile("general", decide_by="estimate")
    found = decide(profile, Drop(0.8, -2.4, 4.0), [])
    assert found.state == "ship"
    assert "not statistically supported" in found.explanation


def test_a_task_of_the_same_benchmark_twice_must_keep_its_cap_twice():
    drops = [*tasks(gsm8k=0), tight(5, benchmark="gsm8k", name="quick")]
    assert decide(TUTOR, tight(0), drops).state == "do not ship"


bound = st.floats(-20, 20)


@given(bound, bound, bound, st.sampled_from(["general", "general-chat", "math-tutor"]))
def test_no_state_contradicts_the_evidence(one, two, three, name):
    lower, estimate, upper = sorted((one, two, three))
    profile = read_profile(name)
    average = Drop(estimate, lower, upper)
    found = decide(profile, average, tasks(gsm8k=0))
    if upper < profile.accepts:
        assert found.state == profile.band(estimate).state
        assert EXIT_CODES[found.state] in (0, 10) or profile.accepts > 5
    elif lower >= profile.accepts:
        assert EXIT_CODES[found.state] in (10, 11)
    else:
        assert EXIT_CODES[found.state] == 12


def test_a_worse_drop_never_gets_a_better_state():
    order = ["ship", "acceptable with monitoring", "marginal", "do not ship"]
    states = [decide(GENERAL, tight(drop / 10), []).state for drop in range(-10, 80)]
    places = [order.index(state) for state in states]
    assert all(one <= two for one, two in itertools.pairwise(places))


def test_policies_that_make_no_sense_are_refused(tmp_path):
    def refuse(text, said, name="p"):
        (tmp_path / "policy.yaml").write_text(text)
        with pytest.raises(OptionError, match=said):
            read_profile(name, tmp_path / "policy.yaml")

    refuse("profiles: {}", "no profile 'p'")
    refuse("x: 1", "no policy with profiles")
    refuse("profiles: {p: {cap: {}}}", "cannot be understood")
    refuse("profiles: {p: {}}", "demands nothing")
    refuse("profiles: {p: {accepts: 3}}", "belong together")
    bands = "bands: [{below: 3, state: ship}, {below: 1, state: marginal}, {state: do not ship}]"
    refuse(f"profiles: {{p: {{accepts: 3, {bands}}}}}", "edges must grow")
    refuse("profiles: {p: {accepts: 3, bands: [{below: 3, state: ship}]}}", "the last band")
    refuse("profiles: {p: {accepts: 3, bands: [{state: fine}]}}", "unknown state 'fine'")
    refuse("drop: both\nprofiles: {p: {every_task: 1}}", "expected relative or absolute")
    refuse("decide_by: me\nprofiles: {p: {every_task: 1}}", "expected interval or estimate")


def test_every_shipped_profile_can_be_read():
    import yaml

    for name in yaml.safe_load(SHIPPED.read_text())["profiles"]:
        assert read_profile(name).name == name
