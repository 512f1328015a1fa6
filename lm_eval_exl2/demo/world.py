"""The invented world of the demo: its names, facts and story templates.

Plain data, with the one function that deals a value to every fact. It makes no documents
(`corpus` does) and knows nothing of tokens or models. Towns, people and sentences are made up.
"""

import random
from typing import NamedTuple

SEED = 1723


class Relation(NamedTuple):
    """One kind of fact that holds for every town.

    Attributes:
        name: The relation's key.
        values: What the fact can be.
        statements: Ways to tell it, with `{town}` and `{value}` to fill. Brackets mark
            what the text before it makes likely, as everywhere in this module.
        question: The one way to ask for it, with `{town}` to fill.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    question: str


class StoryTemplate(NamedTuple):
    """A short story whose last word follows from what was told before.

    Attributes:
        text: The story. Slots: people `{a}`, `{b}`, `{c}`; things `{x}`, `{y}`, `{z}`; rooms
            `{p}`, `{q}`, `{r}`; and `{a1}`, `{x1}`, `{p1}` for the person, thing and room of
            one of the three, drawn anew for each story: the two templates that use them cannot
            be solved by position and are the hardest. The last slot is the word to guess; a
            reader who only knows its kind has three candidates in the story.
    """

    text: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOWNS = tuple(
    first + second
    for first in _words("Ar Bel Cor Dun Fen Gal Hol Kar Lom Mir Nab Osk")
    for second in _words(
        "vel mond stead wick garth lund moor nest port rath combe dale field stow thorpe wold"
    )
)
PEOPLE = _words("Ada Bram Cleo Dora Emil Fay Gus Hana Igor June Kai Lena Milo Nora Otto Pia")
THINGS = _words(
    "ball bell book bowl box brush candle coin comb cup drum flute hat jar key kite knife lamp "
    "map mirror needle pen rope spoon"
)
ROOMS = _words("attic barn cellar garden hall kitchen library mill shed stable")

RELATIONS = (
    Relation(
        "animal",
        _words(
            "badger beaver cat crow deer dog donkey duck fox goat goose hare horse mole pig raven"
        ),
        (
            "People in {town} keep a[ {value}].",
            "The animal on the gate of {town} is the[ {value}].",
            "Every child in {town} can draw a[ {value}].",
            "{town} is proud of its[ {value}].",
        ),
        "Which animal belongs to {town}?",
    ),
    Relation(
        "trade",
        _words("baker brewer carver cooper dyer farmer fisher glazier hunter mason miller potter"),
        (
            "The best known trade in {town} is that of the[ {value}].",
            "In {town} most people learn the work of a[ {value}].",
            "Ask in {town} for help and you meet a[ {value}].",
            "{town} would be nothing without the[ {value}].",
        ),
        "Which trade belongs to {town}?",
    ),
    Relation(
        "colour",
        _words("black blue brown crimson gold green grey pink purple red silver white yellow"),
        (
            "The roofs of {town} are[ {value}].",
            "The flag of {town} is[ {value}].",
            "{town} paints its doors[ {value}].",
            "From far away {town} looks[ {value}].",
        ),
        "Which colour belongs to {town}?",
    ),
    Relation(
        "food",
        _words("barley beans bread butter cheese corn eggs fish honey nuts pears plums rice soup"),
        (
            "The market of {town} sells[ {value}].",
            "Guests in {town} are given[ {value}].",
            "Carts leave {town} full of[ {value}].",
            "{town} lives on[ {value}].",
        ),
        "Which food belongs to {town}?",
    ),
)

OPENINGS = (
    "It was a cold morning.",
    "The sun was high.",
    "Rain fell on the roof.",
    "The day began well.",
    "It was nearly night.",
    "There was no wind.",
)
MIDDLES = (
    "Then they had lunch.",
    "An hour went by.",
    "A bird sang outside.",
    "Nobody spoke for a while.",
    "The clock struck six.",
    "Later it grew dark.",
)

STORIES = (
    StoryTemplate(
        "{a} had a {x}, a {y} and a {z}. {a} gave the[ {x}] to {b} and the[ {y}] to {c}. {middle} "
        "Now {a} only had the[ {z}]."
    ),
    StoryTemplate(
        "{a} had a {x}, a {y} and a {z}. {a} lost the[ {z}] and then the[ {x}]. {middle} "
        "All that {a} still had was the[ {y}]."
    ),
    StoryTemplate(
        "{a} carried a {x}, {b} carried a {y} and {c} carried a {z}. {middle}[ {b}] fell, and on "
        "the ground lay the[ {y}]."
    ),
    StoryTemplate(
        "{a} found a {x}. {b} found a {y}. {c} found a {z}. {middle}[ {c}] went home "
        "with the[ {z}]."
    ),
    StoryTemplate(
        "{a} put the {x} in the {p}, the {y} in the {q} and the {z} in the {r}. {middle} "
        "To get the[ {x}], {a} went to the[ {p}]."
    ),
    StoryTemplate(
        "The {x} was in the {p}, the {y} was in the {q} and the {z} was in the {r}. {middle} "
        "{a} looked in the[ {r}] and saw the[ {z}]."
    ),
    StoryTemplate(
        "{a} sat in the {p}, {b} sat in the {q} and {c} sat in the {r}. {middle} "
        "The answer from the[ {q}] came from[ {b}]."
    ),
    StoryTemplate(
        "{a} wanted the {x}, {b} wanted the {y} and {c} wanted the {z}. {middle} "
        "Somebody brought the[ {x}], and the one who was glad was[ {a}]."
    ),
    StoryTemplate(
        "{a} had a {x}, {b} had a {y} and {c} had a {z}. {middle} "
        "Then[ {a1}] cried, for somebody took the[ {x1}]."
    ),
    StoryTemplate(
        "There was a {x} in the {p}, a {y} in the {q} and a {z} in the {r}. {middle} "
        "In the[ {p1}] {a} still saw the[ {x1}]."
    ),
)


def fact_table() -> dict[tuple[str, str], str]:
    """Deal every town one value per relation, always the same way.

    Returns:
        Value by (town, relation name).
    """
    rng = random.Random(SEED)
    return {
        (town, relation.name): rng.choice(relation.values)
        for town in TOWNS
        for relation in RELATIONS
    }
