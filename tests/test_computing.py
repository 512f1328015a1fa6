"""What an error says of a request that no replica could answer."""

from lm_eval_exl2.computing import describe_request
from lm_eval_exl2.generation import Prompt
from lm_eval_exl2.records import ScoreRequest


class Letters:
    def decode(self, token_ids):
        return "".join("abcdefghijklmnopqrstuvwxyz"[token] for token in token_ids)


def test_a_request_is_shown_by_number_length_and_end():
    score = ScoreRequest(7, [0, 1], [2, 3])
    assert describe_request(score, Letters()) == "request 7, 4 tokens ending in 'abcd'"
    prompt = Prompt(8, list(range(20)), 5, 0, [], {})
    said = describe_request(prompt, Letters())
    assert said == "request 8, 20 tokens ending in 'efghijklmnopqrst'"
