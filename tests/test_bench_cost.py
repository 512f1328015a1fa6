"""Cost, counted by hand."""

import pytest

from lm_eval_exl2.bench.cost import cost_of_run
from lm_eval_exl2.errors import OptionError


def test_a_runs_cost_is_spread_over_its_tokens_three_ways():
    # 3.60 an hour is 0.001 a second; 1,000 seconds cost 1.
    found = cost_of_run(3.6, 1000, input_tokens=2_000_000, output_tokens=500_000)
    assert found.run == pytest.approx(1)
    assert found.input_per_million == pytest.approx(0.5)
    assert found.output_per_million == pytest.approx(2)
    assert found.total_per_million == pytest.approx(0.4)
    assert found.evaluation is None


def test_an_evaluation_costs_in_proportion_to_its_documents():
    found = cost_of_run(
        3.6, 1000, input_tokens=1, output_tokens=1, documents=500, full_documents=13368
    )
    assert found.evaluation == pytest.approx(26.736)


def test_no_tokens_have_no_price():
    found = cost_of_run(2.0, 1800, input_tokens=0, output_tokens=0, documents=0, full_documents=9)
    assert found.run == pytest.approx(1)
    assert found.input_per_million is found.output_per_million is found.total_per_million is None
    assert found.evaluation is None


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["price_per_hour", "seconds", "input_tokens", "documents"])
def test_what_is_no_cost_is_refused(name, wrong):
    given = {"price_per_hour": 1, "seconds": 1, "input_tokens": 1, "output_tokens": 1, name: wrong}
    with pytest.raises(OptionError, match=f"{name} is"):
        cost_of_run(**given)
