"""Stop strings are found in text that arrives in pieces exactly when they are complete."""

from hypothesis import given
from hypothesis import strategies as st

from lm_eval_exl2.stops import StopScanner

PIECES = st.lists(st.text("ab\n", max_size=4), max_size=12)


@given(PIECES, st.lists(st.text("ab\n", max_size=5), max_size=3))
def test_a_stop_string_is_found_with_the_piece_that_completes_it(pieces, stops):
    scanner = StopScanner(stops)
    text = ""
    for piece in pieces:
        text += piece
        is_complete = any(stop and stop in text for stop in stops)
        assert scanner.feed(piece) == (is_complete and bool(piece))
        if is_complete:
            break


def test_a_stop_string_may_span_many_pieces():
    scanner = StopScanner(["Question:"])
    assert [scanner.feed(piece) for piece in ("a Qu", "est", "", "ion", ": b")] == [
        *(False, False, False, False, True)
    ]


def test_no_stop_strings_never_stop():
    scanner = StopScanner(["", ""])
    assert not any(scanner.feed("a") for _ in range(9))
