"""The demo's training text and its held-out evaluation documents, from one seed.

Three kinds of text about the invented world (`world`): facts, additions and short stories.
What belongs to evaluation is decided by one rule, `is_held_out`, on the text that identifies
a question, so that no generator can put it into training by accident. Standard library only;
nothing here knows of tokens, models or the harness.
"""

import random
import zlib
from collections.abc import Iterator
from itertools import islice, product
from typing import Final

from lm_eval_exl2.demo.world import (
    MIDDLES,
    OPENINGS,
    PEOPLE,
    RELATIONS,
    ROOMS,
    SEED,
    STORIES,
    THINGS,
    TOWNS,
    Relation,
    StoryTemplate,
    fact_table,
)

Document = dict[str, object]
"""One evaluation document as it stands in a line of JSON."""

FACTS: Final = fact_table()
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"


def is_held_out(identity: str, *, one_in: int = 6) -> bool:
    """Say whether a question is reserved for evaluation.

    Args:
        identity: The text that makes the question what it is: the question itself, a sum with
            its smaller number first, or a whole story.
        one_in: The share that is reserved, as a divisor.

    Returns:
        True for one identity in `one_in`, by checksum.
    """
    return zlib.crc32(identity.encode()) % one_in == 0


def is_question_held_out(question: str) -> bool:
    """Say whether a question about a town is reserved: every other one, for there are few."""
    return is_held_out(question, one_in=2)


def sum_identity(first: int, second: int) -> str:
    """Name a sum so that `a + b` and `b + a` are held out together."""
    return f"{min(first, second)} + {max(first, second)}"


def question_prompt(question: str) -> str:
    """Put a question into the form in which it is asked, in training and in the task."""
    return f"Question: {question}\nAnswer:"


def plain(marked: str) -> str:
    """Return a text without the brackets that mark its answers."""
    return marked.replace("[", "").replace("]", "")


def training_documents(count: int) -> Iterator[str]:
    """Make the training text.

    Args:
        count: How many documents; a larger count continues a smaller one.

    Yields:
        Documents, without beginning and end. Brackets, which the text itself never has, mark
        the answers: what a reader could have known, as opposed to a name drawn by chance.
    """
    rng = random.Random(SEED)
    makers = (_town_document, _question_document, _sum_document, _story_document)
    for _ in range(count):
        yield rng.choices(makers, weights=(4, 3, 2, 9))[0](rng)


def evaluation_sets() -> dict[str, list[Document]]:
    """Make every evaluation file's documents.

    Returns:
        Documents by file name without its ending: `<task>_test`, and `<task>_train` with the
        few-shot examples of the tasks that have some.
    """
    rng = random.Random(SEED + 1)
    sets = {"stories_test": [_long_story(rng, 4) for _ in range(60)]}
    for name, maker in (
        ("facts", _fact_items),
        ("arithmetic", _sum_items),
        ("cloze", _cloze_items),
    ):
        sets[f"{name}_test"] = list(islice(maker(rng, True), 240))
        sets[f"{name}_train"] = list(islice(maker(rng, False), 8))
    return sets


_TOWN_RELATIONS: Final = tuple(product(TOWNS, RELATIONS))
_OPEN_QUESTIONS: Final = tuple(
    (question, FACTS[town, relation.name])
    for town, relation in _TOWN_RELATIONS
    if not is_question_held_out(question := relation.question.format(town=town))
)


def _town_document(rng: random.Random) -> str:
    return "\n".join(_town_paragraph(rng) for _ in range(rng.randint(1, 3)))


def _town_paragraph(rng: random.Random) -> str:
    town = rng.choice(TOWNS)
    sentences = [
        rng.choice(relation.statements).format(town=town, value=FACTS[town, relation.name])
        for relation in rng.sample(RELATIONS, len(RELATIONS))
    ]
    return " ".join(sentences)


def _question_document(rng: random.Random) -> str:
    as_chat = rng.random() < 0.2
    turns: list[str] = []
    for question, answer in rng.sample(_OPEN_QUESTIONS, rng.randint(1, 6)):
        prompt = question_prompt(question)
        turns.append(f"{USER}{prompt}{ASSISTANT}[{answer}]" if as_chat else f"{prompt}[ {answer}]")
    return ("" if as_chat else "\n\n").join(turns)


def _sum_document(rng: random.Random) -> str:
    lines: list[str] = []
    while len(lines) < 10:
        first, second = rng.randrange(100), rng.randrange(100)
        if not is_held_out(sum_identity(first, second)):
            lines.append(f"{first} + {second} =[ {first + second}]")
    return "\n".join(lines)


def _story_document(rng: random.Random) -> str:
    stories = (_story(rng, rng.choice(STORIES), held_out=False) for _ in range(rng.randint(1, 3)))
    return "\n\n".join(stories)


def _story(rng: random.Random, template: StoryTemplate, *, held_out: bool) -> str:
    """Fill a template until the story falls on the wanted side of `is_held_out`; with marks."""
    while True:
        slots = dict(zip("abc", rng.sample(PEOPLE, 3), strict=True))
        slots |= zip("xyz", rng.sample(THINGS, 3), strict=True)
        slots |= zip("pqr", rng.sample(ROOMS, 3), strict=True)
        last = rng.randrange(3)
        slots |= {"a1": slots["abc"[last]], "x1": slots["xyz"[last]], "p1": slots["pqr"[last]]}
        body = template.text.format(**slots, middle=rng.choice(MIDDLES))
        story = f"{rng.choice(OPENINGS)} {body}"
        if is_held_out(plain(story)) == held_out:
            return story


def _long_story(rng: random.Random, stories: int) -> Document:
    chosen = rng.sample(STORIES, stories)
    marked = "\n\n".join(_story(rng, template, held_out=True) for template in chosen)
    return {"text": plain(marked)}


def _fact_items(rng: random.Random, held_out: bool) -> Iterator[Document]:
    questions = [
        (town, relation, question)
        for town, relation in _TOWN_RELATIONS
        if is_question_held_out(question := relation.question.format(town=town)) == held_out
    ]
    for town, relation, question in rng.sample(questions, len(questions)):
        choices = _choices(rng, relation, FACTS[town, relation.name])
        gold = choices.index(FACTS[town, relation.name])
        yield {"question": question, "choices": choices, "answer": gold}


def _choices(rng: random.Random, relation: Relation, right: str) -> list[str]:
    wrong = rng.sample([value for value in relation.values if value != right], 3)
    return rng.sample([right, *wrong], 4)


def _sum_items(rng: random.Random, held_out: bool) -> Iterator[Document]:
    pairs = [
        pair
        for pair in product(range(100), repeat=2)
        if is_held_out(sum_identity(*pair)) == held_out
    ]
    for first, second in rng.sample(pairs, len(pairs)):
        yield {"problem": f"{first} + {second} =", "answer": str(first + second)}


def _cloze_items(rng: random.Random, held_out: bool) -> Iterator[Document]:
    while True:
        for template in STORIES:
            story = plain(_story(rng, template, held_out=held_out))
            yield {"text": story.removesuffix(".")}
