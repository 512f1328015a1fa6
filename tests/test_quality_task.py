"""exl2_quality through the harness: what is asked, what is reported, what is compared."""

import json
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.quality.prompts import DEMO_PROMPTS, PROMPTS, load_prompts
from lm_eval_exl2.tasks.quality.similarity import rouge_l, sentence_bleu

TASKS = Path(__file__).parents[1] / "task_configs" / "quality"
ASKED = load_prompts(PROMPTS)


class Oracle(LM):
    """A model that answers from the document, and remembers what it was asked."""

    tokenizer_name = "oracle"

    def __init__(self, answer, takes_system=True):
        super().__init__()
        self.answer = answer
        self.takes_system = takes_system
        self.requests = []

    def generate_until(self, requests):
        self.requests += [request.args for request in requests]
        return [self.answer(request.doc) for request in requests]

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        turns = [turn for turn in chat_history if self.takes_system or turn["role"] != "system"]
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns) + "<assistant>"

    def chat_template(self, chat_template=False):
        return "oracle"


def run(task, model, *, metadata=None, **arguments):
    manager = TaskManager(include_path=[str(TASKS)], include_defaults=False, metadata=metadata)
    found = lm_eval.simple_evaluate(
        model, tasks=[task], task_manager=manager, bootstrap_iters=10, **arguments
    )
    results = {name.removesuffix(",none"): value for name, value in found["results"][task].items()}
    return results, found


def right(document):
    return f"{document['answers'][0] if document['answers'] else 'It'} is so."


def test_right_short_answers_are_clean_where_one_sentence_is_enough():
    results, found = run("exl2_quality", Oracle(right))
    assert len(found["samples"]["exl2_quality"]) == len(ASKED) == 31
    assert results["exact"] == 1.0
    # One prompt wants two sentences.
    assert results["clean"] == results["limits_kept"] == pytest.approx(30 / 31)
    assert results["limits_kept_stderr"] == pytest.approx((30 / 31 * 1 / 31 / 30) ** 0.5)
    faults = ["empty", "repetition", "special_token", "prompt_leak", "emoji", "language_drift"]
    assert all(results[name] == 0 for name in [*faults, "truncated"])
    assert "rougeL" not in results
    higher = found["higher_is_better"]["exl2_quality"]
    assert [name for name in results if higher.get(name) is False] == [*faults, "truncated"]
    assert all(higher[name] for name in ("clean", "limits_kept", "exact", "rougeL"))


def test_each_fault_is_a_share_of_all_answers_and_exact_of_those_that_have_one():
    bad = {
        "riddle-honey": "8.<|im_sep|>",
        "riddle-eggs": "",
        "riddle-sisters": "2 Answer: 2 Answer: 2",
        "code-loop": "5. It is so.",
        "history-leavitt": "It is \U0001f600.",
        "explain-index": "It is a table.",
    }
    results, found = run("exl2_quality", Oracle(lambda d: bad.get(d["id"], right(d))))
    assert results["special_token"] == results["empty"] == results["emoji"] == pytest.approx(1 / 31)
    assert results["prompt_leak"] == pytest.approx(1 / 31)
    assert results["repetition"] == 0
    assert results["limits_kept"] == pytest.approx(28 / 31)  # empty, "table", two sentences
    assert results["clean"] == pytest.approx(25 / 31)
    keyed = sum(bool(prompt.answers) for prompt in ASKED)
    assert results["exact"] == pytest.approx((keyed - 2) / keyed)
    samples = {each["doc"]["id"]: each for each in found["samples"]["exl2_quality"]}
    assert samples["riddle-honey"]["special_token"] == 1
    assert samples["riddle-honey"]["exact"] == 1
    assert "exact" not in samples["history-leavitt"]


def test_a_base_model_is_asked_in_plain_text_and_stopped_at_the_next_question():
    model = Oracle(right)
    run("exl2_quality", model, system_instruction="Be kind.")
    context, arguments = model.requests[0]
    bread = ASKED[0]
    assert context == f"Be kind.\n\n{bread.instruction}\n\nQuestion: {bread.prompt}\nAnswer:"
    assert arguments == {"until": ["\nQuestion:"], "max_gen_toks": 256, "do_sample": False}


@pytest.mark.parametrize("multiturn", [False, True])
def test_a_chat_model_gets_a_system_message_and_no_stop_that_hides_a_fault(multiturn):
    model = Oracle(right)
    given = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn}
    run("exl2_quality", model, limit=2, **given)
    context, arguments = model.requests[1]
    assert context == f"<system>{ASKED[1].instruction}<user>{ASKED[1].prompt}<assistant>"
    assert arguments["until"] == []


def test_a_template_without_system_messages_gets_the_limits_from_the_user():
    model = Oracle(right, takes_system=False)
    run("exl2_quality", model, limit=1, apply_chat_template=True, system_instruction="Be kind.")
    bread = ASKED[0]
    user = f"<user>Be kind.\n\n{bread.instruction}\n\n{bread.prompt}<assistant>"
    assert model.requests[0][0] == user


def test_stops_that_a_user_asks_for_are_kept():
    model = Oracle(right)
    stops = {"until": ["END"]}
    run("exl2_quality", model, limit=1, apply_chat_template=True, gen_kwargs=stops)
    assert model.requests[0][1]["until"] == ["END"]


def test_predict_only_judges_nothing():
    results, found = run("exl2_quality", Oracle(right), limit=1, predict_only=True)
    assert "clean" not in results
    assert found["samples"]["exl2_quality"][0]["resps"] == [["It is so."]]


def save(path, samples):
    """As the harness writes samples: numbers and texts as they are, one object a line."""
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return str(path)


@pytest.fixture(scope="module")
def baseline():
    """Samples of a run over the first three prompts."""
    found = run("exl2_quality", Oracle(lambda document: "It rose for too long."), limit=3)[1]
    return found["samples"]["exl2_quality"]


def test_closeness_to_a_reference_is_the_mean_over_prompts(baseline, tmp_path):
    path = save(tmp_path / "samples.jsonl", baseline)
    answers = iter(["It rose for too long.", "It rose.", ""])
    results, found = run(
        "exl2_quality", Oracle(lambda _: next(answers)), limit=3, metadata={"reference": path}
    )
    # Two words in common of 2 and of 5: F = 2 * 1 * 0.4 / 1.4.
    assert results["rougeL"] == pytest.approx((1 + 0.8 / 1.4 + 0) / 3)
    samples = found["samples"]["exl2_quality"]
    assert [each["sentence_bleu"] for each in samples][::2] == [pytest.approx(1), 0]
    metadata = found["configs"]["exl2_quality"]["metadata"]
    assert metadata["reference"] == path
    assert len(metadata["reference_sha256"]) == 64


def spoil(samples, how):
    samples = json.loads(json.dumps(samples))
    match how:
        case "another prompt":
            samples[1]["doc"]["prompt"] = "What?"
        case "another task":
            samples[0]["doc"] = {"question": "What?"}
        case "twice":
            samples.append(samples[0])
        case "no text":
            samples[0]["resps"] = [[["-2.0", "False"]]]
        case "few":
            del samples[2]
        case "none":
            samples.clear()
    return samples


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("another prompt", "was asked another prompt 'diagnose-website'"),
        ("another task", "line 1: no text `id` in a document"),
        ("twice", "line 4: prompt 'diagnose-bread' stands there twice"),
        ("no text", "line 1: no text under `resps`"),
        ("few", "lacks 1 of 3 prompts, such as 'diagnose-lamp'"),
        ("none", "is empty"),
    ],
)
def test_a_wrong_reference_ends_the_run_before_anything_is_generated(
    baseline, tmp_path, how, message
):
    path = save(tmp_path / "samples.jsonl", spoil(baseline, how))
    model = Oracle(right)
    with pytest.raises(OptionError, match=message) as caught:
        run("exl2_quality", model, limit=3, metadata={"reference": path})
    assert "\n" not in str(caught.value)
    assert model.requests == []


@pytest.mark.parametrize("content", [None, b"\xff", b"# Notes", b"[1]", b"null"])
def test_a_file_that_holds_no_samples_is_refused(tmp_path, content):
    path = tmp_path / "samples.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError, match=r"samples file|expected a samples file"):
        run("exl2_quality", Oracle(right), metadata={"reference": str(path)})


def test_rouge_l_by_hand():
    # Common subsequence "the cat the mat" of 4 words; 6 in the reference, 5 in the answer.
    found = rouge_l("the cat sat on the mat", "The cat lay: the mat")
    assert found == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))
    assert rouge_l("a b", "a b") == 1.0
    assert rouge_l("a b", "") == rouge_l("", "") == 0.0


def test_sentence_bleu_by_hand():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples and 1 of 2 quadruples occur; the answer is as long.
    found = sentence_bleu("the cat sat down here", "the cat sat down there")
    assert found == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    # Half as long as the reference: brevity penalty exp(1 - 4 / 2); it has pairs at most.
    assert sentence_bleu("the cat sat down", "the cat") == pytest.approx(2.718281828**-1)
    assert sentence_bleu("the cat", "") == 0.0


def test_the_demo_asks_what_the_checkpoint_was_trained_on():
    model = Oracle(right)
    results, _ = run("exl2_quality_demo", model)
    assert results["exact"] == 1.0
    prompts = load_prompts(DEMO_PROMPTS)
    assert [context for context, _ in model.requests] == [
        f"Answer briefly.\n\n{prompt.prompt}" for prompt in prompts
    ]
    assert load_yaml(TASKS / "exl2_quality_demo.yaml", resolve_func=False)["num_fewshot"] == 0


def test_judging_needs_no_harness_and_no_model_library():
    code = (
        "import sys, lm_eval_exl2.tasks.quality.side_by_side;"
        "print([name for name in ('lm_eval', 'torch', 'datasets', 'nltk') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
