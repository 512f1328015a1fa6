"""Each fault that exl2_quality looks for: what shows it, and what only looks like it."""

import pytest

from lm_eval_exl2.tasks.quality.faults import (
    find_emoji,
    find_prompt_leak,
    find_special_token,
    find_truncation,
)
from lm_eval_exl2.tasks.quality.language import find_language_drift
from lm_eval_exl2.tasks.quality.prompts import PROMPTS, load_prompts

ALL = {prompt.id: prompt for prompt in load_prompts(PROMPTS)}
BREAD = ALL["diagnose-bread"]


@pytest.mark.parametrize(
    "leak",
    [
        "<|im_sep|>", "<|endoftext|>", "<|eot_id|>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<bos>", "<pad>", "[PAD]",
        "<start_of_turn>", "<end_of_turn>", "<0x0A>", "<unused12>", "<extra_id_0>",
        "\u2581word", "\u0120word", "\u010a", "\ufffd", "im_sep", "<end_of_text>",
    ],
)  # fmt: skip
def test_spelled_out_tokens_are_found(leak):
    assert find_special_token(f"It is so. {leak} And")


def test_ordinary_brackets_and_bars_are_no_tokens():
    text = "Use a < b || c > d, <b>bold</b>, [PADDING], x <- y, f(s), |x|, list[INST_1], a <|> b."
    assert not find_special_token(text)


@pytest.mark.parametrize(
    "leak",
    [
        "3\nQuestion: What is next?",
        "ravenQuestion: Which animal belongs to Arrath?",
        "It is so.\nUser: thanks\nAssistant: welcome",
        "It is so.assistant\n\nIt is so.",
        "It is so.\nassistant\nIt is",
        "### Response\nIt is so.",
        "**Question:** Why?",
        "Answer: 3 Answer: 3",
        "in at most 3 sentences and at most 70 words: old yeast",
        BREAD.prompt,
        f"You asked: {BREAD.prompt}",
    ],
)
def test_parts_of_the_prompt_are_found(leak):
    assert find_prompt_leak(BREAD, leak)


@pytest.mark.parametrize(
    "fine",
    [
        "",
        "**Answer:** The yeast was too old.",
        "My assistant, the user and the system agree. The question is why.",
        "The Solar System: it is large.",
        "Your bread dough rose well in the bowl, but the loaf sank because it had risen too long.",
    ],
)
def test_what_a_writer_may_say_is_no_leak(fine):
    assert not find_prompt_leak(BREAD, fine)


def test_material_may_be_quoted_and_the_question_may_not():
    spelling, loop = ALL["count-spelling"], ALL["code-loop"]
    assert not find_prompt_leak(spelling, spelling.prompt.partition("\n\n")[2])
    assert not find_prompt_leak(loop, loop.prompt.partition("\n\n")[2])
    assert find_prompt_leak(spelling, "How many words in this text are misspelled? Begin with the "
                            "number. 3")  # fmt: skip


# Emoji, language, truncation


@pytest.mark.parametrize("emoji", ["\U0001f600", "\u2764\ufe0f", "\u2b50", "\U0001f1e9\U0001f1ea",
                                   "1\ufe0f\u20e3", "\u23f0", "\u2705", "\u26a0"])  # fmt: skip
def test_emoji_are_found(emoji):
    assert find_emoji(f"Good {emoji}.")


def test_signs_of_text_are_no_emoji():
    assert not find_emoji(
        "\u00b0 \u2192 \u2713 \u2717 \u2605 \u266f \u00a9 \u00d7 \u2264 \u2640 \u2022"
    )


DRIFT = {
    "chinese": "The dough is \u8fc7 old.",
    "russian": "The dough \u0442\u0435\u0441\u0442\u043e is old.",
    "greek": "\u03b6\u03cd\u03bc\u03b7 \u03ba\u03b1\u03b9 \u03bd\u03b5\u03c1\u03cc",
    "german": "Die wahrscheinlichste Ursache ist, dass der Teig zu lange gegangen ist und die Luft "
    "nicht mehr halten konnte, als er in den Ofen kam.",
    "portuguese": "A causa mais provavel e que a massa fermentou por tempo demais e a rede de "
    "gluten nao conseguia mais reter o gas quando entrou no forno quente.",
    "french": "La cause la plus probable est que la pate a leve trop longtemps et que le gluten ne "
    "pouvait plus retenir le gaz.",
    "spanish": "La causa mas probable es que la masa ha fermentado demasiado tiempo y que no podia "
    "retener el gas en el horno.",
    "italian": "La causa piu probabile e che la pasta ha lievitato troppo a lungo e non poteva piu "
    "trattenere il gas nel forno.",
    "dutch": "De meest waarschijnlijke oorzaak is dat het deeg te lang heeft gerezen en het gas "
    "niet meer kon vasthouden toen het in de oven ging.",
    "swedish": "Den troligaste orsaken ar att degen har jast for lange och att den inte langre "
    "kunde halla kvar gasen nar den kom in i ugnen.",
    "changing": "The most likely cause is that the dough was left to rise for too long. Man kann "
    "das beim naechsten Mal pruefen, indem man mit dem Finger in den Teig drueckt und schaut, ob "
    "die Delle langsam wieder verschwindet oder ob sie einfach stehen bleibt.",
    "soup": "loaf oven yeast heat rise dough crust flour salt water steam gluten sugar knead shape "
    "score proof bake cool slice toast butter",
}


@pytest.mark.parametrize("name", DRIFT)
def test_drift_into_another_language_is_found(name):
    assert find_language_drift(DRIFT[name])


@pytest.mark.parametrize(
    "fine",
    [
        "",
        "112",
        "A wave of 5 \u00b5m has \u03bb = 5; \u0394E = h\u03bd, 3 \u2126, x\u207f and \u212b.",
        "Caf\u00e9, na\u00efve, Fran\u00e7ois, \u0141\u00f3d\u017a and \u00de\u00f3r.",
        "stale yeast, cold room, too much salt",
        "Naomi scored 44 points, Yuri 68 points and Brianna 17 more points, so that all of them "
        "scored 44 + 68 + 85 = 197 points; Jojo scored the other 54 points.",
        "```\n" + "\n".join(f"variable{n} = call{n}(argument{n})" for n in range(9)) + "\n```",
    ],
)  # fmt: skip
def test_signs_names_and_code_are_no_drift(fine):
    assert not find_language_drift(fine)


@pytest.mark.parametrize(
    "half",
    [
        "The dough sank because",
        "The dough sank, and the",
        "The dough sank,",
        "There are three causes:",
        "The dough (",
        "The dough sank. The most likely cause is that it had been left",
        "Like so:\n```python\nbest = numbers[0]",
    ],
)
def test_half_texts_are_found(half):
    assert find_truncation(half)


@pytest.mark.parametrize(
    "whole",
    [
        "",
        "9",
        "Neptune",
        "fox\n",
        "The dough sank.",
        'He said "no."',
        "It rose (slowly!)",
        "**It rose too long.**",
        "- old yeast\n- a dough that was left in a warm place over night",
        "Repair it so:\n```python\nbest = numbers[0]\n```",
        "n = 1, 2, 3, 4",
        "Together they had 10 apples + 20 apples = 30 apples",
        "So the area of this triangle is $\\boxed{27}.$",
        "It rose too long\u2026",
    ],
)
def test_whole_texts_are_not_found(whole):
    assert not find_truncation(whole)
