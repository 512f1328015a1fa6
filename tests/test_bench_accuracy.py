"""`lm-eval-exl2 bench-accuracy`: from result folders to exit codes and reports."""

import json
from dataclasses import replace
from pathlib import Path

import nltk
import pytest
from answer_runs import GENERATIVE, bench, row, write_answers, write_rows
from run_files import Task, write_run
from tokenizers import Tokenizer

import lm_eval_exl2
from lm_eval_exl2.bench.accuracy import Choices, measure_accuracy
from lm_eval_exl2.bench.rules import read_rules
from lm_eval_exl2.compare.runs import read_run

DEMO = Path(lm_eval_exl2.__file__).parent / "demo" / "checkpoints" / "fp16"
REFERENCES = [f"the {each} lay in the old mill by the river" for each in ("key", "cup", "map")]
GOOD = [f" {each}." for each in REFERENCES]
BAD = [f" somebody found a {each} and then went home" for each in ("key", "cup", "map")]


def gate_of(folder):
    return json.loads((folder / "a.json").read_text())["gate"]


def run(tmp_path, capsys, *words):
    return bench(capsys, *words, "--json", tmp_path / "a.json")


@pytest.fixture
def base(tmp_path):
    return write_answers(tmp_path / "base", GOOD, REFERENCES)


def test_a_candidate_that_answers_alike_ships(tmp_path, capsys, base):
    cand = write_answers(tmp_path / "cand", GOOD, REFERENCES)
    code, out, _ = run(tmp_path, capsys, base, cand, "--markdown", tmp_path / "a.md")
    assert code == 0
    assert "mlperf-99, rule own: ship" in out
    assert (tmp_path / "a.md").read_text() == out
    demands = gate_of(tmp_path)["demands"]
    assert [each["name"] for each in demands] == [
        *("rouge1", "rouge2", "rougeL", "characters per answer"),
    ]
    assert demands[0]["candidate"] == 100.0


def test_a_worse_candidate_does_not_ship_and_the_interval_is_beside_the_estimate(
    tmp_path, capsys, base
):
    cand = write_answers(tmp_path / "cand", [GOOD[0], GOOD[1], BAD[2]], REFERENCES)
    code, out, _ = run(tmp_path, capsys, base, cand)
    assert code == 11
    found = gate_of(tmp_path)
    assert found["state"] == "do not ship"
    # Of 10 words in the third reference and 8 in the answer, 1 is shared: F = 2 / 18.
    assert found["demands"][0]["candidate"] == pytest.approx(100 * (2 + 2 / 18) / 3, abs=1e-4)
    low, high = found["demands"][0]["interval"]
    assert low < found["demands"][0]["ratio"] < high
    assert "decides nothing" in out


def test_the_ratio_is_chosen_and_names_the_profile(tmp_path, capsys, base):
    cand = write_answers(tmp_path / "cand", [GOOD[0], GOOD[1], BAD[2]], REFERENCES)
    assert run(tmp_path, capsys, base, cand, "--ratio", "0.2")[0] == 0
    assert gate_of(tmp_path)["profile"] == "mlperf-20"
    run(tmp_path, capsys, base, cand, "--ratio", "0.999")
    assert gate_of(tmp_path)["profile"] == "mlperf-99.9"


def test_agreement_is_a_profile_of_its_own_and_neither_decides_the_other(tmp_path, capsys):
    # Both are equally far from the references and share no word.
    base = write_answers(tmp_path / "base", ["key left old mill"] * 2, ["key river"] * 2)
    cand = write_answers(tmp_path / "cand", ["my river ran here"] * 2, ["key river"] * 2)
    words = [base, cand, "--reference", "question"]
    assert run(tmp_path, capsys, *words)[0] == 13  # rouge1 of the baseline is 0 there
    extra = [row(f"question {at}", "key river", "key river") for at in range(2)]
    rows = [row(f"q{at}", "key left old mill", "key river") for at in range(2)]
    other = [row(f"q{at}", "my river ran here", "key river") for at in range(2)]
    base, cand = write_rows(tmp_path / "b", rows + extra), write_rows(tmp_path / "c", other + extra)
    assert run(tmp_path, capsys, base, cand)[0] == 0
    assert run(tmp_path, capsys, base, cand, "--profile", "agreement-99")[0] in (11, 12)
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["gate"]["state"], found["agreement"]["identical"]) == ("ship", 2)


def test_without_references_the_gate_cannot_compare_but_agreement_can(tmp_path, capsys):
    base = write_answers(tmp_path / "base", GOOD, ["", REFERENCES[1], " "])
    code, out, _ = run(tmp_path, capsys, base, base)
    assert code == 13
    assert "2 of 3 documents have no reference text" in out
    code, _, _ = run(tmp_path, capsys, base, base, "--profile", "agreement-99")
    assert code == 12  # three documents settle nothing
    assert json.loads((tmp_path / "a.json").read_text())["agreement"]["identical"] == 3


def test_the_order_of_documents_is_nothing_and_duplicates_are_paired_by_occurrence(
    tmp_path, capsys
):
    first = [row("same", "red boat", "red boat"), row("same", "old mill", "red boat")]
    rows = [*first, row("other", "a key", "a key")]
    base, cand = write_rows(tmp_path / "base", rows), write_rows(tmp_path / "cand", rows[::-1])
    run(tmp_path, capsys, base, base)
    before = json.loads((tmp_path / "a.json").read_text())
    run(tmp_path, capsys, base, cand)
    after = json.loads((tmp_path / "a.json").read_text())
    assert after["gate"]["demands"][0]["candidate"] == before["gate"]["demands"][0]["candidate"]
    # The duplicates stand the other way round, so their answers are paired crosswise.
    assert (before["agreement"]["identical"], after["agreement"]["identical"]) == (3, 1)
    moved = write_rows(tmp_path / "moved", [rows[2], *rows[:2]])
    run(tmp_path, capsys, base, moved)
    after = json.loads((tmp_path / "a.json").read_text())
    assert after["agreement"] == before["agreement"]
    assert after["gate"] == before["gate"]


def test_other_prompts_or_targets_are_refused(tmp_path, capsys, base):
    rows = [row("q", "a", "b", doc={"id": 1}, prompt="one")]
    one = write_rows(tmp_path / "one", rows)
    two = write_rows(tmp_path / "two", [{**rows[0], "prompt": "two"}])
    code, out, err = bench(capsys, one, two)
    assert (code, out) == (13, "")
    assert "1 of 1 prompts differ" in err
    assert bench(capsys, one, two, "--pair", "doc", "--quiet")[0] == 13  # no ROUGE at all
    three = write_rows(tmp_path / "three", [{**rows[0], "target": "c"}])
    assert "targets differ" in bench(capsys, one, three)[2]
    assert "no document in common" in bench(capsys, base, one)[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"original": 9}, "run with --limit"),
        ({"drop": 1}, "only 2 documents are in both runs, of 3 and 2"),
        ({"settings": {"do_sample": True, "temperature": 1.0}}, "drawn at random"),
        ({"cut": True}, "end in half a line"),
    ],
)
def test_what_is_incomplete_or_drawn_certifies_nothing(tmp_path, capsys, base, change, said):
    rows = [row(f"question {at}", GOOD[at], REFERENCES[at]) for at in range(3)]
    if "settings" in change:
        for at, each in enumerate(rows):
            request = {"arg_0": f"question {at}", "arg_1": change["settings"]}
            each["arguments"] = {"gen_args_0": request}
        base = write_rows(tmp_path / "again", rows)
    cand = write_rows(
        tmp_path / "cand", rows[: 3 - change.get("drop", 0)], original=change.get("original")
    )
    if "cut" in change:
        file = next(cand.rglob("samples_*"))
        file.write_text(file.read_text() + '{"doc_id": 3, ')
    code, out, _ = run(tmp_path, capsys, base, cand)
    assert code == 12
    assert said in out
    assert run(tmp_path, capsys, base, cand, "--accept-limited")[0] == 0


def test_a_published_rule_needs_no_baseline(tmp_path, capsys, base):
    words = ["--rule", "llama2-70b", "--tokenizer", DEMO]
    code, out, _ = run(tmp_path, capsys, base, *words)
    assert code == 13
    assert "24,576 documents with ROUGE, this run has 3" in out
    assert "agreement-99" not in out
    code, _, err = bench(capsys, base, *words, "--profile", "agreement-99")
    assert code == 2
    assert "give BASELINE" in err
    assert bench(capsys, base)[0] == 2  # rule own


def test_a_short_baseline_does_not_shorten_what_published_scores_judge(tmp_path, capsys, base):
    few = write_answers(tmp_path / "few", GOOD[:1], REFERENCES[:1])
    words = [few, base, "--rule", "llama2-70b", "--tokenizer", DEMO]
    _, out, _ = bench(capsys, *words)
    assert "this run has 3" in out
    assert "agreement-99: inconclusive" in out
    assert "used for the agreement alone" in out


def test_a_rule_by_sentences_counts_them_in_rouge_lsum_and_in_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk, "sent_tokenize", lambda text: text.split("  "))
    # Sentences of the answer alone tell in the first, those of the reference in the second.
    texts = [" the dog slept  a fox ran ", "the dog slept a fox ran"]
    references = ["a fox ran the dog slept", "a fox ran  the dog slept"]
    folder = write_answers(tmp_path / "cand", texts, references)
    rule = replace(read_rules()["llama3.1-8b"], documents=2, length_documents=2)
    found = measure_accuracy(read_run(folder), None, Choices(rule=rule)).gate
    scores = {each.name: each.candidate for each in found.demands}
    # As one text half of it is in order; sentence by sentence all of it. 13 + 9 characters and a
    # line end.
    assert (scores["rougeL"], scores["rougeLsum"]) == (50.0, 100.0)
    assert scores["characters per answer"] == 23


def test_tokens_are_the_tokenizers_and_text_stays_text(tmp_path, capsys, base):
    cand = write_answers(tmp_path / "cand", [GOOD[0][:-1], *GOOD[1:]], REFERENCES)
    run(tmp_path, capsys, base, cand, "--tokenizer", DEMO)
    found = json.loads((tmp_path / "a.json").read_text())
    count = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    expected = [
        sum(len(count.encode(text, add_special_tokens=False).ids) for text in texts) / 3
        for texts in (GOOD, [GOOD[0][:-1], *GOOD[1:]])
    ]
    length = found["gate"]["demands"][-1]
    assert length["name"] == "tokens per answer"
    assert [length["baseline"], length["candidate"]] == pytest.approx(expected)
    assert found["agreement"]["divergence"]["unit"] == "tokens"


def test_other_tasks_count_for_the_length_alone(tmp_path, capsys):
    def folder(name, answer):
        tasks = [
            Task("notes", [row("q", GOOD[0], REFERENCES[0])], config=GENERATIVE),
            Task("sums", [row("1 + 1", answer, ["2", "two"])], config=GENERATIVE),
            Task("quiz", [{"metrics": {"acc": 1.0}}]),
        ]
        return write_run(tmp_path / name, tasks)

    base, cand = folder("base", "2" * 55), folder("cand", "2" * 5)
    code, _, err = bench(capsys, base, cand)
    assert code == 2
    assert "notes, sums; name one" in err
    assert run(tmp_path, capsys, base, cand, "--tasks", "notes")[0] == 0
    assert run(tmp_path, capsys, base, cand, "--tasks", "notes,sums")[0] == 11
    length = gate_of(tmp_path)["demands"][-1]
    assert (length["baseline"], length["candidate"]) == ((41 + 55) / 2, (41 + 5) / 2)


def test_references_are_a_field_or_several_texts(tmp_path, capsys):
    doc = {"question": "q", "highlights": ["nothing like it", "red boats at dawn"], "none": None}
    rows = [row("q", "red boats at dawn", "x", doc=doc)]
    folder = write_rows(tmp_path / "base", rows)
    words = [folder, folder, "--reference"]
    assert run(tmp_path, capsys, *words, "highlights")[0] == 0
    assert gate_of(tmp_path)["demands"][0]["candidate"] == 100.0
    assert bench(capsys, *words, "none")[0] == 13
    code, _, err = bench(capsys, *words, "summary")
    assert code == 2
    assert "no field 'summary' in the documents, there are question, highlights, none" in err
    listed = write_rows(tmp_path / "listed", [row("q", "a", ["one", "two"])])
    assert "--reference FIELD" in bench(capsys, listed, listed)[2]


def test_several_answers_to_a_document_are_refused(tmp_path, capsys):
    for given in ([["a", "b"]], [["a"], ["b"]], [[["1.0", "True"]]]):
        folder = write_rows(tmp_path / "base", [row("q", "", "b", resps=given)])
        code, _, err = bench(capsys, folder, folder)
        assert code == 13
        assert "document 0 has not exactly one written answer" in err


def test_what_rouge_cannot_see_and_empty_answers_are_said(tmp_path, capsys):
    base = write_answers(tmp_path / "base", ["橋", "old mill"], ["橋", "old mill"])
    cand = write_answers(tmp_path / "cand", ["橋", ""], ["橋", "old mill"])
    _, out, _ = bench(capsys, base, cand)
    assert "1 references hold nothing that ROUGE sees" in out
    assert "1 answers of the candidate are empty" in out


@pytest.mark.parametrize("words", [["--ratio", "1.5"], ["--ratio", "x"], ["--rule", "gpt-5"]])
def test_wrong_usage_ends_with_status_2(capsys, words):
    with pytest.raises(SystemExit) as ended:
        bench(capsys, "a", "b", *words)
    assert ended.value.code == 2


def test_missing_samples_and_tasks_are_one_line(tmp_path, capsys, base):
    other = write_answers(tmp_path / "cand", GOOD, REFERENCES, name="other")
    assert "other was not run" in bench(capsys, base, other, "--tasks", "other")[2]
    assert bench(capsys, base, other)[0] == 2
    next(base.rglob("samples_*")).unlink()
    code, _, err = bench(capsys, base, base)
    assert code == 13
    assert "--log_samples" in err
    assert err.count("\n") == 1
