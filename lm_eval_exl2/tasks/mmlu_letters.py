"""MMLU as exllamav2 0.3.2's `eval/mmlu.py` scores it: which of four letters is likeliest next.

One forward per question. Against the stock `mmlu`: prompt and question are tokenized apart, BOS
always stands in front, the question is not stripped, and only the letters are compared.
"""

# The harness ships without types:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

from collections.abc import Sequence
from math import exp
from random import Random
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean

from lm_eval_exl2.errors import OptionError, RequestError
from lm_eval_exl2.tasks.model_files import ModelFiles, load_model_files
from lm_eval_exl2.tasks.token_requests import TokenTask, read_logprob, request_tokens

Document = dict[str, Any]

LETTERS = "ABCD"
_METRICS = ("acc", "acc_macro", "confidence")


class MmluLetters(TokenTask):
    """One subject.

    Of its `metadata`, which `--metadata` can change: `shuffle_seed` (an integer shuffles each
    question's choices; the seed becomes part of the documents, so that runs with different seeds
    are not taken for the same questions).
    """

    def __init__(self, *, config: dict[str, Any]) -> None:
        """As the harness calls it; finds the letters' tokens.

        Raises:
            OptionError: A letter is not a single token, nothing says which BOS the model has, or
                the seed is no integer.
        """
        super().__init__(config=config)
        self._model = load_model_files(self.config.metadata)
        self._letters = find_letters(self._model.tokenizer)
        self._bos = find_bos(self._model)
        self._preprompts: dict[str, list[int]] = {}
        chosen = [f"chose_{letter}" for letter in LETTERS]
        self._aggregation_list = dict.fromkeys((*_METRICS, *chosen), mean)
        self._higher_is_better: dict[str, bool] = dict.fromkeys(_METRICS, True)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **arguments: Any) -> None:
        """Loads the subject and shuffles choices if asked to."""
        super().download(dataset_kwargs, **arguments)
        seed = self.config.metadata.get("shuffle_seed")
        if seed is None:
            return
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise OptionError(f"shuffle_seed={seed!r}, expected an integer")
        from datasets import Dataset

        split = self.config.test_split
        questions = [
            shuffle_choices(dict(document), seed, number)
            for number, document in enumerate(self.dataset[split])
        ]
        self.dataset = {**self.dataset, split: Dataset.from_list(questions)}

    def construct_requests(
        self, doc: Document, ctx: str | list[str], **arguments: Any
    ) -> list[Instance]:
        """Four requests with one context, which adapters that share equal contexts forward once.

        Raises:
            RequestError: The prompt was put into a chat template.
        """
        question = str(self.doc_to_text(doc))
        text = ctx if isinstance(ctx, str) else ""
        if arguments.get("apply_chat_template") or not text.endswith(question):
            raise RequestError(
                f"{self.config.task} compares letters behind plain text, as exllamav2 does; run it "
                "without --apply_chat_template"
            )
        context = [*self._encode_preprompt(text.removesuffix(question)), *self._encode(question)]
        return [
            request_tokens(
                doc, context, [letter], text=text, index=index, metadata=arguments["metadata"]
            )
            for index, letter in enumerate(self._letters)
        ]

    def _encode(self, text: str) -> list[int]:
        return self._model.tokenizer.encode(text, add_special_tokens=False)

    def _encode_preprompt(self, text: str) -> list[int]:
        """Description and examples, the same for all questions of a subject."""
        if text not in self._preprompts:
            bos = [] if self._bos is None else [self._bos]
            self._preprompts[text] = [*bos, *self._encode(text)]
        return self._preprompts[text]

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, Any]:
        """Metrics of one question.

        Returns:
            `acc`, and as `acc_macro` the same for groups that weigh subjects equally; `confidence`,
            the right letter's share of the four letters' probability; `chose_A` to `chose_D`.

        Raises:
            ScoreError: The model gave no finite log-likelihood.
        """
        if self._bypassed:
            return {"bypass": None}
        logprobs = [read_logprob(result, "a letter") for result in results]
        best = max(logprobs)
        choice = logprobs.index(best)
        weights = [exp(logprob - best) for logprob in logprobs]
        right = float(choice == doc["answer"])
        return {
            "acc": right,
            "acc_macro": right,
            "confidence": weights[doc["answer"]] / sum(weights),
            **{f"chose_{each}": float(choice == at) for at, each in enumerate(LETTERS)},
        }


def shuffle_choices(document: Document, seed: int, number: int) -> Document:
    """A question with its choices in another order.

    Args:
        document: The question.
        seed: Of the run; written into the document.
        number: The question's place in its subject, so that each has an order of its own.
    """
    order = Random(f"{seed}/{document.get('subject')}/{number}").sample(range(4), 4)
    return {
        **document,
        "choices": [document["choices"][place] for place in order],
        "answer": order.index(document["answer"]),
        "shuffle_seed": seed,
    }


def find_letters(tokenizer: Any) -> list[int]:
    """The tokens " A" to " D".

    Raises:
        OptionError: One of them is more than one token.
    """
    before = tokenizer.encode("Answer:", add_special_tokens=False)
    found: list[int] = []
    for letter in LETTERS:
        *start, last = tokenizer.encode(f"Answer: {letter}", add_special_tokens=False)
        if start != before:
            raise OptionError(
                f"' {letter}' is not a single token behind 'Answer:' for this tokenizer, so its "
                "letters cannot be compared; use the stock `mmlu`"
            )
        found.append(last)
    return found


def find_bos(model: ModelFiles) -> int | None:
    """BOS as exllamav2 finds it: config.json's, else the tokenizer's.

    Raises:
        OptionError: Neither is known.
    """
    written = model.config.get("bos_token_id")
    found = model.tokenizer.bos_token_id if written is None else written
    if found is None and not model.config:
        raise OptionError(
            "nothing says whether a BOS stands in front: there is no config.json where the "
            "tokenizer is; name a `tokenizer` that belongs to the model"
        )
    return found
