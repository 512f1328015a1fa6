"""MMLU by letters, against a plain loop that does what exllamav2's script does."""

import math
import types
from pathlib import Path

import lm_eval
import lm_eval.tasks
import pytest
import torch
import transformers
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_exl2.demo import demo_directory
from lm_eval_exl2.errors import OptionError, RequestError, ScoreError
from lm_eval_exl2.lm import Exl2LM
from lm_eval_exl2.tasks import demo
from lm_eval_exl2.tasks.mmlu_letters import find_bos, find_letters, shuffle_choices

TASKS = Path(__file__).parents[1] / "task_configs" / "mmlu_letters"
STOCK = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
FACTS = demo.facts()


def evaluate(model, *, limit=6, metadata=None, **arguments):
    known = {"pretrained": "demo-fp16", **(metadata or {})}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=known)
    found = lm_eval.simple_evaluate(
        model,
        tasks=["exl2_mmlu_letters_demo"],
        task_manager=manager,
        limit=limit,
        **arguments,
    )
    (results,) = found["results"].values()
    return (
        {name.removesuffix(",none"): value for name, value in results.items()},
        found["samples"]["exl2_mmlu_letters_demo"],
    )


class Letter(LM):
    """Gives the letters of a question the log-probabilities it is told, in the order asked."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers
        self.requests = []

    def _loglikelihood_tokens(self, requests, **_arguments):
        self.requests += requests
        return [(self.answers[at % len(self.answers)], False) for at in range(len(requests))]

    loglikelihood = loglikelihood_rolling = generate_until = None


def write(document, answer=None):
    """Question and choices in exllamav2's form."""
    lines = [
        f"{letter}. {choice}" for letter, choice in zip("ABCD", document["choices"], strict=True)
    ]
    text = "\n".join([document["question"], *lines, "Answer:"])
    return text if answer is None else f"{text} {'ABCD'[answer]}\n\n"


@torch.no_grad()
def test_scores_are_those_of_a_loop_over_the_next_tokens_logits():
    folder = demo_directory("demo-fp16")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pieces = [tokenizer.decode([at]) for at in range(len(tokenizer))]
    letters = [pieces.index(f" {letter}") for letter in "ABCD"]
    preprompt = "The following are multiple choice questions (with answers) about towns.\n\n"
    preprompt += "".join(write(each, each["answer"]) for each in FACTS["train"].to_list()[:2])
    start = [tokenizer.bos_token_id, *tokenizer.encode(preprompt, add_special_tokens=False)]

    _, samples = evaluate(Exl2LM("demo-fp16", device="cpu"))
    assert len(samples) == 6
    for sample, document in zip(samples, FACTS["test"].to_list(), strict=False):
        question = tokenizer.encode(write(document), add_special_tokens=False)
        logits = model(torch.tensor([[*start, *question]])).logits[0, -1, letters]
        confidence = logits.softmax(-1)[document["answer"]].item()
        assert sample["acc"] == (logits.argmax().item() == document["answer"])
        assert sample["confidence"] == pytest.approx(confidence, abs=1e-5)
        assert sample["arguments"][0][0] == preprompt + write(document)


def test_metrics_of_two_questions_by_hand():
    answers = [document["answer"] for document in FACTS["test"].to_list()[:2]]
    told = [math.log(0.4), math.log(0.1), math.log(0.2), math.log(0.1)]  # halves of what is said
    results, samples = evaluate(Letter(told), limit=2)
    shares = [0.5, 0.125, 0.25, 0.125]
    assert [sample["confidence"] for sample in samples] == pytest.approx(
        [shares[a] for a in answers]
    )
    assert results["confidence"] == pytest.approx(sum(shares[a] for a in answers) / 2)
    assert results["acc"] == results["acc_macro"] == answers.count(0) / 2
    assert [results[f"chose_{letter}"] for letter in "ABCD"] == [1, 0, 0, 0]


def test_a_question_is_one_context_with_four_letters():
    model = Letter([-1.0])
    evaluate(model, limit=1)
    assert len(model.requests) == 4
    assert len({tuple(context) for _, context, _ in model.requests}) == 1
    assert len({tuple(target) for _, _, target in model.requests}) == 4


def test_predict_only_computes_no_metric():
    results, samples = evaluate(Letter([-1.0]), limit=2, predict_only=True)
    assert "acc" not in results
    assert len(samples) == 2


def test_shots_can_be_fewer_and_a_system_instruction_stands_in_front():
    model = Letter([-1.0])
    _, samples = evaluate(model, limit=1, num_fewshot=0, system_instruction="Think.")
    text = samples[0]["arguments"][0][0]
    assert text.startswith("Think.\n\nThe following are multiple choice questions")
    assert text.endswith("about towns.\n\n" + write(FACTS["test"][0]))


def test_a_chat_template_is_refused():
    model = Letter([-1.0])
    model.apply_chat_template = lambda history, add_generation_prompt=True: f"<{history}>"
    model.chat_template = lambda name=False: "template"
    type(model).tokenizer_name = "tokenizer"
    with pytest.raises(RequestError, match="without --apply_chat_template"):
        evaluate(model, apply_chat_template=True)


def test_choices_are_shuffled_with_the_seed_in_the_document():
    model = Letter([0.0, -9.0, -9.0, -9.0])
    plain, before = evaluate(model, limit=40)
    shuffled, after = evaluate(model, limit=40, metadata={"shuffle_seed": 3})
    _, also = evaluate(model, limit=40, metadata={"shuffle_seed": 3})
    other, _ = evaluate(model, limit=40, metadata={"shuffle_seed": 4})
    assert [each["doc_hash"] for each in after] == [each["doc_hash"] for each in also]
    assert len({plain["acc"], shuffled["acc"], other["acc"]}) > 1
    for one, two in zip(before, after, strict=True):
        assert one["doc_hash"] != two["doc_hash"]
        assert two["doc"]["shuffle_seed"] == 3
        assert sorted(one["doc"]["choices"]) == sorted(two["doc"]["choices"])
        right = [each["doc"]["choices"][each["doc"]["answer"]] for each in (one, two)]
        assert right[0] == right[1]


def test_every_order_of_the_choices_comes_up():
    document = {"question": "?", "subject": "s", "choices": list("wxyz"), "answer": 2}
    found = {tuple(shuffle_choices(document, 0, at)["choices"]) for at in range(400)}
    assert len(found) == 24


def test_a_seed_that_is_no_integer_is_refused():
    with pytest.raises(OptionError, match="shuffle_seed='yes', expected an integer"):
        evaluate(Letter([-1.0]), metadata={"shuffle_seed": "yes"})


def test_letters_of_more_than_one_token_are_refused():
    class Characters:
        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            return [ord(letter) for letter in text]

    with pytest.raises(OptionError, match="' A' is not a single token"):
        find_letters(Characters())


def test_letters_carry_their_space_in_sentencepiece_vocabularies():
    class Words:
        """One token per word with the blank before it, and a blank before every text."""

        def encode(self, text, add_special_tokens):
            return ["▁" + word for word in text.split(" ")]

    assert find_letters(Words()) == ["▁A", "▁B", "▁C", "▁D"]


def test_preprompt_and_question_are_tokenized_apart():
    """Seen with a tokenizer that puts a mark in front of every text, as SentencePiece does."""

    class Marked:
        bos_token_id = 7

        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            return [8, *map(ord, text)]

    manager = TaskManager(
        include_path=str(TASKS), include_defaults=False, metadata={"pretrained": "demo-fp16"}
    )
    task = manager.load(["exl2_mmlu_letters_demo"])["tasks"]["exl2_mmlu_letters_demo"]
    task._model = task._model._replace(tokenizer=Marked())
    document = FACTS["test"][0]
    question = write(document)
    (first, *_) = task.construct_requests(document, "Before. " + question, metadata=("t", 0, 1))
    expected = [task._bos, 8, *map(ord, "Before. "), 8, *map(ord, question)]
    assert list(first.context_ids) == expected


@pytest.mark.parametrize("loss", ["nan", "-inf"])
def test_a_letter_without_a_probability_is_no_answer(loss):
    with pytest.raises(ScoreError, match=f"log-likelihood {loss}"):
        evaluate(Letter([float(loss)]), limit=1)


def test_a_chat_template_that_ends_with_the_question_is_refused_too():
    model = Letter([-1.0])
    model.apply_chat_template = lambda history, add_generation_prompt=True: (
        "### user:\n" + history[-1]["content"]
    )
    model.chat_template = lambda name=False: "template"
    type(model).tokenizer_name = "tokenizer"
    with pytest.raises(RequestError, match="without --apply_chat_template"):
        evaluate(model, apply_chat_template=True)


def test_without_config_and_bos_nobody_knows_what_stands_in_front():
    none = types.SimpleNamespace(bos_token_id=None)
    with pytest.raises(OptionError, match="whether a BOS stands in front"):
        find_bos(types.SimpleNamespace(tokenizer=none, config={}))


def test_all_subjects_share_five_examples_of_dev_and_the_test_split():
    shared = load_yaml(TASKS / "_exl2_mmlu_letters.yaml", resolve_func=False)
    stock = load_yaml(STOCK / "_default_template_yaml", resolve_func=False)
    assert shared["num_fewshot"] == 5
    for name in ("dataset_path", "test_split", "fewshot_split", "fewshot_config", "doc_to_choice"):
        assert shared[name] == stock[name]


def test_bos_is_what_config_json_says_before_what_the_tokenizer_says():
    tokenizer = types.SimpleNamespace(bos_token_id=5)
    assert find_bos(types.SimpleNamespace(tokenizer=tokenizer, config={"bos_token_id": 7})) == 7
    assert find_bos(types.SimpleNamespace(tokenizer=tokenizer, config={})) == 5
    none = types.SimpleNamespace(bos_token_id=None)
    assert find_bos(types.SimpleNamespace(tokenizer=none, config={"model_type": "x"})) is None


def test_the_subjects_are_those_of_the_stock_mmlu():
    stock = {path.stem.removeprefix("mmlu_"): path for path in STOCK.glob("mmlu_*.yaml")}
    ours = {
        path.stem.removeprefix("exl2_mmlu_letters_"): path
        for path in TASKS.glob("exl2_mmlu_letters_*.yaml")
        if "demo" not in path.stem
    }
    assert len(ours) == 57
    assert set(ours) == set(stock)
    for subject, path in ours.items():
        mine = load_yaml(path, resolve_func=False)
        theirs = load_yaml(stock[subject], resolve_func=False)
        assert mine["task"] == f"exl2_mmlu_letters_{subject}"
        assert mine["task_alias"] == subject
        assert mine["dataset_name"] == theirs["dataset_name"] == subject
        assert mine["tag"] == f"exl2_{theirs['tag'].replace('mmlu_', 'mmlu_letters_')}"
        assert mine["description"] == theirs["description"]


def test_groups_weigh_questions_for_micro_and_subjects_for_macro():
    for path in TASKS.glob("_exl2_mmlu_letters_*.yaml"):
        weighed = {
            each["metric"]: each["weight_by_size"]
            for each in load_yaml(path, resolve_func=False)["aggregate_metric_list"]
        }
        assert [name for name, by_size in weighed.items() if not by_size] == ["acc_macro"]
        assert {"acc", "confidence", *(f"chose_{letter}" for letter in "ABCD")} < set(weighed)
