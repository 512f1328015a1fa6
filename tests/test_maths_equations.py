"""Which written equations are false, and which texts are no equations."""

import random
from fractions import Fraction

import pytest

from lm_eval_exl2.tasks.maths.equations import false_equations
from lm_eval_exl2.tasks.maths.expressions import evaluate, tokenize

TRUE = """
48/2 = 24
48+24 = <<48+24=72>>72 clips altogether.
3 + 4 * 5 = 23
(3 + 4) * 5 = 35
3 + 4 = 7 * 2 = 14
-3 + 5 = 2
5 - -3 = 8
2 * (1 + 1) / 4 = 1
$1,250 + $750 = $2,000.00
1000 x 3 = 3,000
5 {TIMES} 3 = 15 and 6 ÷ 4 = 1.5
8 {MINUS} 3 = 5
10 / 3 = 3
10 / 3 = 3.33
10 / 3 = 3.333...
2 / 3 = 0.67
2 / 3 = 0.66
7 / 2 = 3
7 / 2 = 4
-2 / 3 = -0.67
20% * 50 = 10
30/50 = 60%
30/50 * 100 = 60%
2/3 = 66.7%
20/60 = 0.33 = 1/3
1/2 + 1/3 = 5/6
0.5 + .5 = 1
- 3 + 4 = 7
1. 5 + 3 = 8
2) 5 + 3 = 8
She has 4, and 5 + 3 = 8
**5 + 3 = 8**
So 5 + 3 = **8** eggs
16 eggs - 3 eggs = 13 eggs
$10/hour * 5 hours = $50
90 snakes * 12 beetles/snake = 1080 beetles
$2\\cdot 12\\cdot20=480$ pounds
\\frac{1}{2} + \\frac{1}{4} = \\frac{3}{4}
n&=480/30=\\boxed{16}
(2)(12) = 24
2(3+4) = 14
He has (5 + 3 = 8) eggs
5 + 3 = 8 (as before)
24 - 2 = 22, 22 - 3 = 19
"""

FALSE = """
48/2 = 25
48+24 = <<48+24=73>>72 clips
48+24 = <<48+24=72>>73 clips
3 + 4 * 5 = 35
(3 + 4) * 5 = 23
3 + 4 = 8 * 2 = 16
-3 + 5 = 8
$1,250 + $750 = $2,100
1000 x 3 = 300
5x3 = 16
5 {TIMES} 3 = 16
6 ÷ 4 = 2.5
8 {MINUS} 3 = 6
10 / 3 = 3.4
10 / 3 = 4
11 / 3 = 3
5 / 2 = 2.4
2 / 3 = 0.6666667 * 1 = 0.5
20% * 50 = 12
30/50 = 70%
1/2 + 1/3 = 2/5
- 3 + 4 = 8
1. 5 + 3 = 9
She has 4, and 5 + 3 = 9
((3 + 4 = 8
**5 + 3 = 9**
So there are 5 + 3 = **9** eggs
16 eggs - 3 eggs = 12 eggs
$10/hour * 5 hours = $60
a total of 12 + 24 = 39 pages
6 - 2 = 8 more trees
4 * 6 = 30 times a year
$2\\cdot 12\\cdot20=470$ pounds
\\frac{1}{2} + \\frac{1}{4} = \\frac{2}{6}
n&=480/30=\\boxed{15}
(2)(12) = 26
He has (5 + 3 = 9) eggs
5 + 3 = 9 (as before)
24 - 2 = 22 = 11 + 10
20/60 = 0.33 = 1/2
"""

NO_EQUATION = """
x = 5
2 + 3 x = 11
2x + 3 = 12
2x+15 = 35
y - 3 = 5
y -3 = 5
x3 + 4 = 9
f(3) + 2 = 9
3 + 4 = 8x
3 + 4 = 8 x
3 + 4 = y
10% of 50 = 6
20% of 50 + 10 = 99
half of 10 + 3 = 9
3/4 of 8 + 1 = 9
50 + 10% = 55
3/4 = March
9:30 + 2:15 = 11:46
2:30 + 3 = 34
0900-0130 = 0730
7 + 8 = 3 mod 12
7 + 8 = 3 \\pmod{12}
17 / 5 = 3 remainder 2
17 / 5 = 3 R 2
6 * 8 = 4 dozen
5 * 3 = 15,5
5000 * 3 = 15 thousand
1 / 2 = 50 cents
4! + 1 = 26
4 + 1 = 3!
2^3 + 1 = 10
3 + 2^3 = 12
3 + 4² = 20
√16 + 2 = 7
sin 30 + 1 = 2
\\sqrt{16} + 2 = 7
3 + 1 = 2\\sqrt{3}
3 + 1 = 2\\pi
13_5 + 4_5 = 22_5
|3 - 5| + 1 = 4
1 1/2 * 2 = 4
600 x 30 = 18 000
14, 400 / 80 = 181
1.2.3 + 4 = 6
60 / 3 / 4 = 80
6 / 2(1+2) = 8
5 / 0 = 0
3 hours + 30 minutes = 4 hours
3 boxes of 4 = 3 * 5
180 minutes = 180 / 60
On day 1 * 2 = 3
5 apples and 3 oranges = 9
3 + 4 == 8
3 + 4 != 8
3 + 4 >= 8
3 + 4 => 8
3 + = 8
= 8
3 + 4 =
12345678901234567890123 + 1 = 5
"""


def lines(text):
    signs = text.replace("{TIMES}", "\u00d7").replace("{MINUS}", "\u2212")
    return signs.strip("\n").split("\n")


@pytest.mark.parametrize("text", lines(TRUE))
def test_true_equations_are_not_called_false(text):
    assert false_equations(text) == []


@pytest.mark.parametrize("text", lines(FALSE))
def test_false_equations_are_found(text):
    assert len(false_equations(text)) == 1


@pytest.mark.parametrize("text", lines(NO_EQUATION))
def test_what_is_not_fully_understood_is_not_called_false(text):
    assert false_equations(text) == []


def test_an_equation_is_given_back_as_it_stands():
    text = "First 2 + 2 = 4.\nThen 16 eggs - 3 eggs = 12 eggs, and \\frac{1}{2} * 4 = 3."
    assert false_equations(text) == ["16 eggs - 3 eggs = 12", "((1)/(2)) * 4 = 3"]
    assert false_equations("2*3 = <<2*3=7>>7") == ["2*3=7", "2*3 = 7"]
    assert false_equations("") == []


def random_sum(rng):
    """A written sum, and its value by a way that shares nothing with the parser."""
    first, second = rng.randint(0, 5000), rng.randint(1, 500)
    sign = rng.choice("+-*/")
    value = {
        "+": Fraction(first + second),
        "-": Fraction(first - second),
        "*": Fraction(first * second),
        "/": Fraction(first, second),
    }[sign]
    blank = rng.choice(["", " "])
    return f"{first:{rng.choice(['', ','])}}{blank}{sign}{blank}{second}{blank}={blank}", value


def test_results_that_are_rounded_are_true_and_others_false():
    rng = random.Random(3)
    for _ in range(500):
        text, value = random_sum(rng)
        places = rng.randint(0, 4)
        written = round(value * 10**places)
        unit = Fraction(1, 10**places)
        shown = f"{float(written * unit):.{places}f}"
        assert false_equations(f"So {text}{shown} pages.") == [], (text, shown)
        off = written + rng.choice([-1, 1]) * rng.randint(2, 9)
        shown = f"{float(off * unit):.{places}f}"
        assert len(false_equations(f"So {text}{shown} pages.")) == 1, (text, shown)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4 - 6 / 4", Fraction(25, 2)),
        ("-(2 - 5) * 2", 6),
        ("1,000.50", Fraction(2001, 2)),
        ("50%", Fraction(1, 2)),
        ("3 * 50%", Fraction(3, 2)),
        (".5 * .5", Fraction(1, 4)),
        ("2(3)(4)", 24),
    ],
)
def test_values_are_exact(text, value):
    assert evaluate(tokenize(text), per_cent=Fraction(1, 100)) == value


@pytest.mark.parametrize(
    "text",
    ["", "+", "2 2", "2 +", "(2", "2)", "()", "--2", "% 2", "1/0", "8 / 4 / 2", "word", "2**3"],
)
def test_what_is_no_expression_has_no_value(text):
    assert evaluate(tokenize(text), per_cent=Fraction(1, 100)) is None


def test_no_text_is_too_strange_to_read():
    rng = random.Random(4)
    pieces = [
        *"()+-*/=%x$ \n.,<>{}&'",
        "1",
        "2.5",
        "1,000",
        "eggs",
        "of",
        "<<",
        ">>",
        "\\frac{",
        "½",
    ]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 14)))
        for equation in false_equations(text):
            assert "=" in equation


@pytest.mark.parametrize(
    "text",
    ["(" * 3_000 + "1 = 2", "1 = " * 3_000, "-" * 3_000 + "1 = 2", "9" * 3_000 + " + 1 = 2",
     "1+1=" * 3_000, "\\frac{" * 3_000, "<<" * 3_000, "1," * 3_000 + "1 + 1 = 5"],
)  # fmt: skip
def test_a_long_text_of_nothing_is_read_to_its_end(text):
    assert false_equations(text + "\n2 + 2 = 5\n")[-1] == "2 + 2 = 5"
