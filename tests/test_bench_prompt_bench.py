"""The prompt bench on a clock that counts looks at it: figures worked out by hand."""

import statistics
from dataclasses import replace

import pytest
from bench_cases import NO_JOURNAL, Ticking, greedy, timed

from lm_eval_exl2.bench import machine
from lm_eval_exl2.bench.data import BenchPrompt, fit_prompts, read_prompts
from lm_eval_exl2.bench.machine import Usage, metered
from lm_eval_exl2.bench.prompt_bench import (
    FIXED_LENGTH,
    NATURAL_STOP,
    PromptBenchSettings,
    Repetition,
    figures_of,
    run_prompt_bench,
)
from lm_eval_exl2.engines.scripted import ScriptedEngine
from lm_eval_exl2.errors import OptionError

PROMPTS = [BenchPrompt(0, [1, 2]), BenchPrompt(1, [3, 3, 3])]
USAGE = Usage(
    wall_s=2.0,
    cpu_s=3.0,
    memory_peak_bytes=100,
    memory_peak_since="",
    card=None,
    why_no_card="none",
)


class Counting(ScriptedEngine):
    """Counts how often it was called and told to forget."""

    def __init__(self):
        super().__init__()
        self.forgot = 0
        self.generated = 0

    def forget(self):
        self.forgot += 1

    def generate(self, requests, is_finished):
        self.generated += 1
        return super().generate(filter(None, requests), is_finished)


def bench(engine=None, **changes):
    settings = PromptBenchSettings(**{"max_new_tokens": 4} | changes)
    engine = engine or Counting()
    return run_prompt_bench(engine, PROMPTS, settings, journal=NO_JOURNAL, clock=Ticking())


def test_every_repetition_is_kept_and_the_warm_up_is_not_one():
    engine = Counting()
    found = bench(engine, repetitions=5)
    assert (len(found.warm_ups), len(found.repetitions)) == (1, 5)
    assert engine.generated == engine.forgot == 6 * 2  # a prompt at a time, nothing remembered
    for repetition in found.repetitions:
        texts = [list(request.token_ids) for request in repetition.requests]
        assert texts == [greedy(prompt.token_ids, 4) for prompt in PROMPTS]
        assert repetition.prompt_tokens_forwarded == 5
        assert repetition.requests[0].issued_s == 0.0
        assert [request.number for request in repetition.requests] == [0, 1]


def test_the_fixed_length_ignores_end_tokens_and_a_natural_stop_obeys_them():
    end = greedy([1, 2], 4)[1]
    fixed, natural = bench(), bench(end_ids=frozenset({end}))
    assert (fixed.ending, natural.ending) == (FIXED_LENGTH, NATURAL_STOP)
    assert fixed.figures["output_tokens"].values == [8] * 5
    first = natural.repetitions[0].requests[0]
    assert first.token_ids[-1] == end
    assert len(first.token_ids) < 4


def test_all_prompts_can_run_as_one_batch():
    engine = Counting()
    found = bench(engine, together=True, repetitions=1)
    assert engine.generated == 2
    (batch,) = found.repetitions[0].batches
    assert len(batch) == 2


def repetition(*batches, forwarded=10, usage=USAGE):
    return Repetition(batches=list(batches), prompt_tokens_forwarded=forwarded, usage=usage)


def test_figures_are_those_of_the_definitions():
    # Alone: first token after 1 s, then 2 in 1 s. Later: after 2 s, then 1 in 3 s.
    alone = [timed([1.0, 1.5, 2.0])]
    later = [timed([12.0, 15.0], issued=10.0, number=1)]
    found = {name: figure.median for name, figure in figures_of([repetition(alone, later)]).items()}
    assert found == {
        "decode_tokens_per_s": 3 / 4,
        "prefill_tokens_per_s": 10 / 3,
        "total_tokens_per_s": 5 / 15,
        "ttft_s": 1.5,
        "tpot_s": 1.75,
        "end_to_end_s": 3.5,
        "output_tokens": 5,
        "memory_peak_bytes": 100,
        "cpu_utilisation": 1.5,
    }


def test_a_batch_decodes_once_its_last_prompt_has_begun():
    # The second begins at 3 s; 2 + 1 tokens come in the 2 s after.
    batch = [timed([1.0, 2.0, 4.0, 5.0]), timed([3.0, 5.0], number=1)]
    found = figures_of([repetition(batch)])
    assert found["decode_tokens_per_s"].median == 3 / 2
    assert found["prefill_tokens_per_s"].median == 10 / 3


def test_median_and_deviation_are_over_repetitions():
    ends = [2.0, 3.0, 5.0, 9.0, 17.0]
    found = figures_of([repetition([timed([1.0, end])]) for end in ends])["tpot_s"]
    assert found.values == [end - 1.0 for end in ends]
    assert found.median == 4.0
    assert found.deviation == pytest.approx(statistics.stdev([1, 2, 4, 8, 16]))


def test_a_figure_that_a_repetition_lacks_is_not_shown():
    found = figures_of([repetition([timed([1.0, 2.0])]), repetition([timed([1.0])])])
    assert "tpot_s" not in found
    assert "decode_tokens_per_s" not in found
    assert len(found["ttft_s"].values) == 2


def test_energy_and_utilisation_are_shown_where_a_card_tells():
    card = machine.CardUsage(utilisation=0.5, energy_j=40.0, memory_peak_bytes=7)
    usage = replace(USAGE, card=card)
    found = figures_of([repetition([timed([1.0, 2.0])], usage=usage)])
    assert found["energy_j"].median == 40.0
    assert found["card_utilisation"].median == 0.5
    assert found["card_memory_peak_bytes"].median == 7


def test_an_interruption_keeps_the_repetitions_that_were_made():
    class Interrupted(Counting):
        def generate(self, requests, is_finished):
            if self.generated == 7:
                raise KeyboardInterrupt
            return super().generate(requests, is_finished)

    found = bench(Interrupted())
    assert found.outcome == "interrupted"
    assert (len(found.warm_ups), len(found.repetitions)) == (1, 2)
    assert len(found.figures["ttft_s"].values) == 2


def test_a_block_is_metered():
    with metered("cpu") as meter:
        held = bytearray(64 << 20)
        for place in range(0, len(held), 4096):
            held[place] = 1
    del held
    found = meter.usage
    assert found.wall_s > 0
    assert 0 < found.cpu_s < 60
    assert found.memory_peak_bytes > 64 << 20
    assert (found.card, found.why_no_card) == (None, "computed on cpu")


def test_memory_that_was_given_back_before_does_not_count():
    held = bytearray(300 << 20)
    for place in range(0, len(held), 4096):
        held[place] = 1
    with metered("cpu") as whole:
        pass
    del held
    with metered("cpu") as meter:
        pass
    if meter.usage.memory_peak_since == "start of the measurement":
        assert whole.usage.memory_peak_bytes - meter.usage.memory_peak_bytes > 200 << 20
    else:
        assert whole.usage.memory_peak_bytes == meter.usage.memory_peak_bytes


def test_a_card_without_its_library_is_said(monkeypatch):
    monkeypatch.setattr(machine, "import_module", _absent)
    with metered("cuda:0") as meter:
        pass
    assert (meter.usage.card, meter.usage.why_no_card) == (None, "nvidia-ml-py is not installed")


def _absent(name):
    raise ImportError(name)


# -- prompts ----------------------------------------------------------------------------------


def test_prompts_keep_their_order_and_those_that_do_not_fit_are_counted():
    texts = ["abc", "", "abcdefgh", "ab", "abcdefg"]
    found = fit_prompts(texts, list, max_new_tokens=3, window=10)
    assert [prompt.place for prompt in found.prompts] == [0, 3, 4]
    assert found.left_out == {1: 0, 2: 8}


def test_no_prompt_that_fits_is_an_error_that_names_the_shortest():
    with pytest.raises(OptionError, match="window of 10 tokens, the shortest has 8"):
        fit_prompts(["abcdefgh", "abcdefghi"], list, max_new_tokens=3, window=10)


def test_prompts_are_read_line_by_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('"one"\n\n{"prompt": "two"}\n{"text": "three", "other": 1}\n')
    assert read_prompts(path) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ("{}\n", "line 1: expected"),
        ('"a"\n[1]\n', "line 2"),
        ("nonsense\n", "not JSON"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(content, message, tmp_path):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OptionError, match=message):
        read_prompts(path)
