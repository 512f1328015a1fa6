"""What the speed benchmarks ask: requests of the harness's own kinds, from real text.

Three workloads are the harness's tasks as they are. The others have the shape of a task whose
data are made of the same folder's rows: what shares a prefix with what, and how long the parts
are, decide about speed; the words do not. All draws are seeded: the same folder gives the same
requests.

The folder is laid out as on the hub (`cais/mmlu`, `Rowan/hellaswag`, `openai/gsm8k`,
`EleutherAI/wikitext_document_level`, each with its parquet files).
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lm_eval.api.instance import Instance

    Row = dict[str, Any]

SUBJECTS = (
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "college_biology",
    "econometrics",
    "high_school_us_history",
    "professional_law",
)
GENERATED_TOKENS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark."""

    title: str
    kind: str
    """Method of the LM that answers it."""
    size: int
    """Documents (per subject for MMLU)."""
    make: Callable[[Path, int], list[Instance]]
    """Build the requests from a folder of data and a number of documents."""


def rows_of(data: Path, folder: str, split: str) -> list[Row]:
    """Read all rows of a split.

    Args:
        data: Folder laid out as on the hub.
        folder: Repository and configuration in it.
        split: Name that the parquet files begin with.
    """
    import pyarrow.parquet

    files = sorted((data / folder).glob(f"{split}-*.parquet"))
    if not files:
        raise SystemExit(f"no {split}-*.parquet in {data / folder}; give --data a folder with it")
    return [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]


def training_text(data: Path) -> Iterator[str]:
    """Yield the text that the benchmark's tokenizer is trained on: all that its tasks show."""
    for folder in sorted((data / "cais" / "mmlu").iterdir()):
        if folder.is_dir():
            for row in rows_of(data, f"cais/mmlu/{folder.name}", "test"):
                yield "\n".join([row["question"], *row["choices"]])
    for row in rows_of(data, "Rowan/hellaswag/data", "validation"):
        yield "\n".join([row["ctx"], *row["endings"]])
    for row in rows_of(data, "openai/gsm8k/main", "train"):
        yield f"{row['question']}\n{row['answer']}"
    for row in rows_of(data, "EleutherAI/wikitext_document_level/wikitext-2-raw-v1", "test"):
        yield row["page"]


def harness_requests(
    data: Path, tasks: list[str], shots: int, size: int, seed: int | None = None
) -> list[Instance]:
    """Build the requests of the harness's own tasks.

    Args:
        data: Folder laid out as on the hub.
        tasks: Names of tasks.
        shots: Number of few-shot examples.
        size: Documents per task.
        seed: Draw the documents at random; None takes the first ones.
    """
    from lm_eval.tasks import TaskManager

    here = os.getcwd()  # noqa: PTH109
    os.chdir(data)  # datasets looks for folders named like the hub's repositories
    try:
        found: list[Instance] = []
        for task in TaskManager().load(tasks)["tasks"].values():
            task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=1234)
            chosen = None
            if seed is not None:
                every = range(len(list(task.eval_docs)))
                chosen = sorted(random.Random(seed).sample(every, min(size, len(every))))
            task.build_all_requests(limit=None if chosen else size, samples=chosen)
            found += task.instances
        return found
    finally:
        os.chdir(here)


def _instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, words, number) for number, words in enumerate(arguments)]


def _short_questions(data: Path) -> list[Row]:
    """Return the MMLU questions that are about as long as ARC's, in a fixed random order."""
    rows = [
        row
        for folder in sorted((data / "cais" / "mmlu").iterdir())
        if folder.is_dir()
        for row in rows_of(data, f"cais/mmlu/{folder.name}", "test")
        if 40 <= len(row["question"]) <= 200 and "\n" not in row["question"]
    ]
    random.Random(0).shuffle(rows)
    return rows


def mmlu(data: Path, size: int) -> list[Instance]:
    """MMLU, 5 shots, as the harness asks it: four one-token answers per question."""
    return harness_requests(data, [f"mmlu_{name}" for name in SUBJECTS], 5, size)


def mmlu_everything(data: Path) -> list[Instance]:
    """All subjects and documents of MMLU there are, 5 shots."""
    names = sorted(path.name for path in (data / "cais" / "mmlu").iterdir() if path.is_dir())
    return harness_requests(data, [f"mmlu_{name}" for name in names], 5, 10**6)


def random_shots(data: Path, size: int) -> list[Instance]:
    """25 random shots per document, as in ARC: little is shared but a document's own answers."""
    rows = _short_questions(data)
    asked, pool = rows[:size], rows[size:]
    draw = random.Random(1)
    arguments: list[tuple[Any, ...]] = []
    for row in asked:
        shots = [
            f"Question: {shot['question']}\nAnswer: {shot['choices'][shot['answer']]}"
            for shot in draw.sample(pool, 25)
        ]
        context = "\n\n".join([*shots, f"Question: {row['question']}\nAnswer:"])
        arguments += [(context, f" {choice}") for choice in row["choices"]]
    return _instances("loglikelihood", arguments)


def many_answers(data: Path, size: int) -> list[Instance]:
    """A fixed preamble, short questions, 4 to 11 answers each, as in TruthfulQA's mc2."""
    rows = _short_questions(data)
    preamble, asked, others = rows[:6], rows[6 : 6 + size], rows[6 + size :]
    head = "\n\n".join(f"Q: {r['question']}\nA: {r['choices'][r['answer']]}" for r in preamble)
    draw = random.Random(2)
    arguments: list[tuple[Any, ...]] = []
    for number, row in enumerate(asked):
        more = [draw.choice(other["choices"]) for other in draw.sample(others, number % 8)]
        context = f"{head}\n\nQ: {row['question']}\nA:"
        arguments += [(context, f" {answer}") for answer in [*row["choices"], *more]]
    return _instances("loglikelihood", arguments)


def hellaswag(data: Path, size: int) -> list[Instance]:
    """HellaSwag without shots, documents drawn at random: four endings share a context."""
    return harness_requests(data, ["hellaswag"], 0, size, seed=0)


def wikitext(data: Path, size: int) -> list[Instance]:
    """WikiText-2 documents in rolling windows: nothing is shared, every position is scored."""
    return harness_requests(data, ["wikitext"], 0, size)


def chain_of_thought(data: Path, size: int) -> list[Instance]:
    """Questions behind 8 fixed worked examples, as in GSM8K-CoT; lengths cycle."""
    shots = rows_of(data, "openai/gsm8k/main", "train")[:8]
    asked = rows_of(data, "openai/gsm8k/main", "test")[:size]
    head = "\n\n".join(f"Q: {row['question']}\nA: {row['answer']}" for row in shots)
    arguments: list[tuple[Any, ...]] = [
        (
            f"{head}\n\nQ: {row['question']}\nA:",
            {
                "until": ["Q:", "</s>"],
                "do_sample": False,
                "max_gen_toks": GENERATED_TOKENS[number % len(GENERATED_TOKENS)],
            },
        )
        for number, row in enumerate(asked)
    ]
    return _instances("generate_until", arguments)


LOGLIKELIHOOD = {
    "mmlu": Workload("MMLU 5-shot", "loglikelihood", 50, mmlu),
    "random_shots": Workload("25 random shots (ARC-like)", "loglikelihood", 40, random_shots),
    "many_answers": Workload(
        "many answers, fixed preamble (TruthfulQA-like)", "loglikelihood", 40, many_answers
    ),
    "hellaswag": Workload("HellaSwag 0-shot", "loglikelihood", 300, hellaswag),
    "wikitext": Workload("rolling WikiText-2", "loglikelihood_rolling", 20, wikitext),
}
GENERATION = {
    "chain_of_thought": Workload(
        "8 fixed shots (GSM8K-CoT-like)", "generate_until", 64, chain_of_thought
    ),
}
