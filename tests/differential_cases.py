"""Requests for the comparison with the harness's own `hf` model, and the comparison itself.

Shared by the test suite and by benchmarks/differential.py, so that the published number comes
from the code that the tests run. Requests that `hf` cannot answer at all are not generated; what
`exl2` answers to them is fixed by named tests (see deliberate_differences.md).
"""

import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import text_models
from asking import ask
from lm_eval.models.huggingface import HFLM

from lm_eval_exl2.lm import Exl2LM

# Every twelfth token ends a text, ordinary ones among them.
MANY_EOS = {"eos_token_id": list(range(0, 420, 12))}
PENALTIES = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3}
# A checkpoint for chatting; a task's greedy requests stay greedy all the same.
CHATTY = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}

# kind of model, its generation_config.json, arguments of both, arguments of exl2 alone
CONFIGURATIONS = (
    ("plain", {}, {}, {}),
    ("plain", PENALTIES, {"add_bos_token": False, "max_length": 48}, {"batch_size": 4}),
    ("bos", {}, {}, {"max_batch_tokens": 7}),
    ("bos", MANY_EOS, {"add_bos_token": True}, {"batch_size": "auto"}),
    ("bos", CHATTY, {"add_bos_token": False, "prefix_token_id": 33}, {"batch_size": 2}),
    ("metaspace", {}, {}, {"batch_size": 1}),
    ("metaspace", MANY_EOS, {"add_bos_token": False}, {"max_batch_size": 3}),
    ("metaspace", PENALTIES, {"add_bos_token": True, "max_length": 40}, {"max_batch_tokens": 50}),
    ("turns", MANY_EOS, {"truncation": True}, {"batch_size": 8}),
    ("turns", CHATTY, {"prefix_token_id": 7}, {}),
)

# Strings that tokenizers, decoders and BOS rules treat specially.
ODDITIES = (
    *("\n", "\n\n", " ", "  ", "    ", "\t", "\r\n", " \n", "\u00a0", "\u200b", "\u3000"),
    *("😀", "👨‍👩‍👧", "e\u0301", "ﬁ", "ß", "\x00", "\x7f", "\ufffd", "▁", "▁▁", "Ġ", "<0x0A>"),
    *(" .", " ,", " n't", "it's", "12345", "()", "(B)", "A:", "..", "<s", "</", "<|", "|>"),
)


@dataclass
class Pair:
    """The two models on one checkpoint."""

    name: str
    hf: HFLM
    exl2: Exl2LM
    loses_space: bool
    """Whether `hf` loses a leading space of what was generated."""

    def ids(self, text):
        """Encode as `hf` does."""
        return self.hf.tok_encode(text)


def load_pair(configuration, folder):
    """Save the checkpoint of a configuration and load it with both models."""
    name, generation, both, own = configuration
    text_models.save(name, folder, generation=generation)
    # With its cache of logits, `hf` answers wrongly when two requests are the same tokens split
    # at different places (see deliberate_differences.md).
    hf = HFLM(pretrained=str(folder), device="cpu", dtype="float32", logits_cache=False, **both)
    exl2 = Exl2LM(str(folder), device="cpu", **both, **own)
    loses_space = text_models.KINDS[name].metaspace
    return Pair(f"{name} {generation} {both} {own}", hf, exl2, loses_space)


# -- what is asked --------------------------------------------------------------------------


class Writer:
    """Writes random texts and requests for one pair of models."""

    def __init__(self, pair, draw):
        """Draw from a random stream."""
        self.pair = pair
        self.draw = draw
        tokenizer = pair.hf.tokenizer
        self.special = [tokenizer.decode([i]) for i in tokenizer.all_special_ids]
        self.prefix = tokenizer.decode(pair.hf.prefix_token_id)
        listed = pair.hf.model.generation_config.eos_token_id
        self.lists_eos = listed in (tokenizer.eos_token_id, [tokenizer.eos_token_id])
        self.vocabulary = [tokenizer.decode([i]) for i in range(len(tokenizer))]

    def words(self, most=8):
        """Return a stretch of the corpus, words often cut."""
        line = self.draw.choice(text_models.CORPUS)
        first = self.draw.randrange(len(line))
        return line[first : first + self.draw.randint(1, 5 * most)]

    def piece(self):
        """Return a short text of a random kind."""
        draw = self.draw
        kind = draw.randrange(10)
        if kind < 5:
            return self.words()
        if kind < 7:
            return draw.choice(ODDITIES)
        if kind < 8:
            return draw.choice(self.vocabulary)
        if kind < 9:
            return draw.choice(self.special)
        return "".join(chr(draw.choice((32, 97, 0x3B1, 0x4E00, 0x1F600)) + i) for i in range(3))

    def text(self, most=4):
        """Return a text of some pieces, possibly empty."""
        return "".join(self.piece() for _ in range(self.draw.randint(0, most)))

    def long_text(self):
        """Return a text that mostly exceeds the window."""
        return "".join(self.words() for _ in range(self.draw.randint(8, 30)))

    def text_of(self, tokens):
        """Return a text of (if it can be hit) exactly this many tokens."""
        text = self.long_text() + self.long_text()
        low, high = 0, len(text)
        while low < high:
            middle = (low + high) // 2
            if len(self.pair.ids(text[:middle])) < tokens:
                low = middle + 1
            else:
                high = middle
        return text[:low]

    # -- log-likelihood --

    def pairs(self):
        """Return (context, continuation) pairs of one random kind."""
        kinds = (
            *(self._plain, self._plain, self._plain, self._choices, self._choices, self._endings),
            *(self._empty_context, self._spaces, self._prefixed, self._window_edge, self._too_long),
        )
        return self.draw.choice(kinds)()

    def _plain(self):
        return [(self.text(), self.text())]

    def _choices(self):
        context = self.text(8)
        return [(context, letter) for letter in (" A", " B", " C", " D", "A", "B")]

    def _endings(self):
        context = self.text(6)
        stem = self.words()
        return [(context, stem + self.text(3)) for _ in range(self.draw.randint(2, 5))]

    def _empty_context(self):
        return [("", self.text()), ("", self.draw.choice(self.vocabulary))]

    def _spaces(self):
        space = self.draw.choice((" ", "  ", "\n", "\t", " \n ", "\u3000"))
        return [(space, self.text()), (self.text() + space, self.text())]

    def _prefixed(self):
        return [
            (self.prefix + self.text(), self.text()),
            ("", self.prefix + self.text()),
            (self.draw.choice(self.special), self.words()),
        ]

    def _window_edge(self):
        window = self.pair.hf.max_length
        length = window + self.draw.randint(-2, 2)
        text = self.text_of(length)
        cut = self.draw.randint(0, len(text))
        return [("", text), (text[:cut], text[cut:])]

    def _too_long(self):
        return [(self.long_text(), self.text())]

    # -- rolling --

    def document(self):
        """Return a document: empty, short, of some whole windows, or longer."""
        draw, window = self.draw, self.pair.hf.max_length
        kind = draw.randrange(6)
        if kind == 0:
            return draw.choice(("", " ", draw.choice(self.vocabulary), self.prefix + self.words()))
        if kind < 3:
            return self.text()
        if kind < 5:
            return self.text_of(window * draw.randint(1, 3) + draw.randint(-1, 1))
        return self.long_text() + self.long_text()

    # -- generation --

    def prompt(self):
        """Return a prompt."""
        return self.long_text() if self.draw.random() < 0.15 else self.text(6)

    def arguments(self):
        """Return generation arguments under which only one text is possible."""
        draw = self.draw
        limit = draw.randint(1, 16)
        greedy = [
            *({}, {}, {"do_sample": False}, {"temperature": 0.0}, {"temperature": 0}),
            {"do_sample": False, "temperature": 0.7, "top_p": 0.5, "top_k": 3},
        ]
        if self.lists_eos:  # else `hf` lets the tokenizer's EOS end a text before its minimum
            greedy.append({"max_gen_toks": limit + 4, "min_new_tokens": 4})
        certain = (
            {"temperature": 0.5, "top_k": 1},
            {"do_sample": True, "temperature": 2.0, "top_p": 0},
        )
        limits = (
            *({"max_gen_toks": limit}, {"max_gen_toks": limit}, {"max_new_tokens": limit}),
            *({"max_tokens": limit}, {"max_completion_tokens": limit}, {"max_gen_toks": "8"}),
            *({"max_tokens": limit, "max_gen_toks": 3}, {"max_new_tokens": 5, "max_tokens": 1}),
            {"max_gen_toks": limit, "max_length": self.pair.hf.max_length},
        )
        others = (
            *({}, {}, {}, {}, {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}),
            *({"num_beams": 1}, {"num_return_sequences": 1}),
        )
        choice = draw.choice(greedy if draw.random() < 0.8 else certain)
        return self._until() | draw.choice(limits) | draw.choice(others) | choice

    def _until(self):
        draw = self.draw
        stops = ["\n", "\n\n", ".", "e", "re", "?\n", "Question:", *self.special]
        return draw.choice(
            (
                {},
                {"until": []},
                {"until": draw.choice(stops)},
                {"until": [draw.choice(stops)]},
                {"until": [draw.choice(stops) for _ in range(3)]},
            )
        )

    def stops_in(self, text):
        """Return stop strings taken from a text that was generated, often across tokens."""
        first = self.draw.randrange(len(text))
        stop = text[first : first + self.draw.randint(1, 5)]
        return self.draw.choice((stop, [stop], ["never seen", stop], [stop, text[-1:]]))


def can_answer(hf, context, continuation):
    """Whether `hf` answers at all: it asserts that both sides have tokens and the target fits."""
    if not context:
        ids = hf.tok_encode(continuation, add_special_tokens=False)
        return len(ids) > (ids[:1] == [hf.prefix_token_id]) and len(ids) <= hf.max_length
    context_ids, target_ids = hf._encode_pair(context, continuation)
    return bool(context_ids) and 0 < len(target_ids) <= hf.max_length


def write_requests(pair, draw, size):
    """Return about `size` requests of all three types; some are asked twice."""
    writer = Writer(pair, draw)
    scored, generated = [], []
    while len(scored) < size * 0.6:
        pairs = [p for p in writer.pairs() if can_answer(pair.hf, *p)]
        scored += [ask("loglikelihood", *p) for p in pairs]
    rolled = [ask("loglikelihood_rolling", writer.document()) for _ in range(int(size * 0.15))]
    while len(generated) < size * 0.12:
        prompt = writer.prompt()
        if pair.ids(prompt):
            generated.append(ask("generate_until", prompt, writer.arguments()))
    for asked in (scored, rolled, generated):
        asked += draw.choices(asked, k=len(asked) // 20)
    return scored, rolled, generated


def write_stop_requests(pair, draw, requests, texts):
    """Return requests whose stop strings occur in what the model says to them."""
    writer = Writer(pair, draw)
    found = []
    for request, text in zip(requests, texts, strict=True):
        prompt, arguments = request.args
        if not text.strip():
            continue
        stops = writer.stops_in(text)
        if not _is_uncertain(stops, pair):
            found.append(ask("generate_until", prompt, arguments | {"until": stops}))
    return found


def _is_uncertain(stops, pair):
    """Whether a stop string may match the space that `hf` loses, or half of a character."""
    stops = [stops] if isinstance(stops, str) else stops
    return any("\ufffd" in s or (pair.loses_space and s.lstrip() != s) for s in stops)


# -- what is answered -----------------------------------------------------------------------


@dataclass
class Comparison:
    """How many answers were compared and what differed."""

    requests: dict = field(default_factory=dict)
    disagreements: list = field(default_factory=list)
    largest: float = 0.0
    """Largest difference of two log-likelihoods."""
    share: float = 0.0
    """Largest difference as a share of what is tolerated."""

    def add(self, pair, requests, expected, found):
        """Compare answers of one type."""
        for request, one, other in zip(requests, expected, found, strict=True):
            kind = request.request_type
            self.requests[kind] = self.requests.get(kind, 0) + 1
            if not self._agrees(pair, kind, one, other):
                self.disagreements.append(f"{pair.name}: {kind}{request.args}: {one!r}, {other!r}")

    def _agrees(self, pair, kind, one, other):
        if kind == "generate_until":
            return other == one or (pair.loses_space and other == f" {one}")
        if kind == "loglikelihood_rolling":
            return self._is_close(one, other)
        return self._is_close(one[0], other[0]) and one[1] == other[1]

    def _is_close(self, one, other):
        difference = abs(one - other)
        tolerated = max(1e-4, 1e-6 * abs(one))  # `hf` adds up in float32
        self.largest = max(self.largest, difference)
        self.share = max(self.share, difference / tolerated)
        return difference <= tolerated


def answers_of_hf(pair, requests):
    """Ask `hf`; one by one for generation, where its batches share padding and the BOS rule."""
    if not requests:
        return []
    kind = requests[0].request_type
    pair.hf.batch_size_per_gpu = 1 if kind == "generate_until" else 16
    return getattr(pair.hf, kind)(requests, disable_tqdm=True)


def answers_of_exl2(pair, requests):
    """Ask `exl2`."""
    return getattr(pair.exl2, requests[0].request_type)(requests, disable_tqdm=True)


def compare(configuration, size, seed):
    """Ask both models the same requests, at least `size`, and compare all answers."""
    comparison = Comparison()
    draw = random.Random(f"{seed} {configuration}")
    with tempfile.TemporaryDirectory() as folder:
        pair = load_pair(configuration, Path(folder))
        asked = write_requests(pair, draw, size)
        for requests in asked:
            expected = answers_of_hf(pair, requests)
            comparison.add(pair, requests, expected, answers_of_exl2(pair, requests))
        again = write_stop_requests(pair, draw, requests, expected)
        if again:
            comparison.add(pair, again, answers_of_hf(pair, again), answers_of_exl2(pair, again))
    return comparison
