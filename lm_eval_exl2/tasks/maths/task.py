"""Tasks whose answers end in a result: accuracy, votes, best of n, and kinds of error.

The harness's filters extract one result per answer; here each becomes a record (what it says,
whether it is right, what went wrong), and `process_results` only counts.
"""

# The harness ships without types:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NotRequired, TypedDict

from lm_eval.api.metrics import mean

from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.tasks.base import OwnTask
from lm_eval_exl2.tasks.maths.equations import false_equations
from lm_eval_exl2.tasks.maths.extract import normal_form
from lm_eval_exl2.tasks.maths.scorers import Scorer, find_scorer, score_answers
from lm_eval_exl2.tasks.maths.votes import best_at_k, majority_at_k
from lm_eval_exl2.tasks.pass_at_k import check_ks, pass_at_k

Document = dict[str, Any]

ERRORS: Final = ("format", "arithmetic", "other")
_DIGIT: Final = re.compile(r"[0-9]")


class Record(TypedDict):
    """One answer, judged."""

    vote: str | None
    """The result in the form in which results are compared; None if there is none."""
    right: bool
    error: NotRequired[str]
    """Of a wrong answer: one of `ERRORS`."""
    false_equation: NotRequired[str]
    """For "arithmetic": the first one."""
    score: NotRequired[float]
    """From the user's scorer, if there is one."""


class MathsTask(OwnTask):
    """A task of the harness whose results are numbers.

    Filters give one text per answer (no `take_first`); `exact_match` in `metric_list` says how
    texts are compared. Of its `metadata`, which `--metadata` can change: `k` (a number or a list;
    for tasks with several answers per problem) and `scorer` ("module:function").
    """

    def __init__(self, *, config: dict[str, Any]) -> None:
        """As the harness calls it; a scorer is imported here, before anything is generated.

        Raises:
            OptionError: A k that is no number from 1 to the number of answers, or no such scorer.
        """
        super().__init__(config=config)
        self._comparing: dict[str, Any] = self._metric_fn_kwargs["exact_match"]
        repeats: int = self.config.repeats
        ks = _read_ks(self.config.metadata.get("k", [1]), repeats)
        self._ks = ks if repeats > 1 else ()  # of one answer each is exact_match
        scorer = self.config.metadata.get("scorer")
        self._scorer: Scorer | None = None if scorer is None else find_scorer(scorer)
        self._set_metrics()

    def vote(self, result: str) -> str | None:
        """What an extracted result votes for: results are the same if their votes are equal.

        Returns:
            The form in which the task compares results; None if there is no digit in it.
        """
        return normal_form(result, **self._comparing) if _DIGIT.search(result) else None

    def working(self, document: Document, answer: str) -> str:
        """The text whose equations are checked."""
        return answer

    def _set_metrics(self) -> None:
        kinds = ["maj", "best", "pass"] if self._scorer else ["maj", "pass"]
        right = ["exact_match", *(f"{kind}@{k}" for kind in kinds for k in self._ks)]
        wrong = [f"error_{kind}" for kind in ERRORS]
        self._aggregation_list: dict[str, Callable[[list[Any]], Any]] = dict.fromkeys(
            [*right, *wrong], mean
        )
        self._higher_is_better: dict[str, bool] = {
            **dict.fromkeys(right, True),
            **dict.fromkeys(wrong, False),
        }

    def apply_filters(self) -> None:
        """Extracts results and judges all answers; with a scorer, calls it once per problem."""
        super().apply_filters()
        if self._bypassed:
            return
        for instance in self._instances or ():
            scores = None
            if self._scorer and self._ks:
                scores = score_answers(self._scorer, instance.doc, list(instance.resps))
            for name, results in instance.filtered_resps.items():
                if isinstance(results, str) or len(results) != len(instance.resps):
                    raise OptionError(
                        f"filter {name!r} of {self.config.task} must give one result for each of "
                        f"{len(instance.resps)} answers; leave out take_first and majority_vote"
                    )
                instance.filtered_resps[name] = self.judge(
                    instance.doc, instance.resps, results, scores
                )

    def judge(
        self,
        document: Document,
        answers: Sequence[str],
        results: Sequence[str],
        scores: Sequence[float] | None,
    ) -> list[Record]:
        """Records of one problem's answers.

        Args:
            document: The problem.
            answers: What the model wrote.
            results: What a filter extracted from each.
            scores: The user's, if there is a scorer.
        """
        right = self.vote(str(self.doc_to_target(document)))
        records: list[Record] = []
        for place, (answer, result) in enumerate(zip(answers, results, strict=True)):
            vote = self.vote(result)
            record = Record(vote=vote, right=vote is not None and vote == right)
            if vote is None:
                record["error"] = "format"
            elif not record["right"]:
                false = false_equations(self.working(document, answer))
                record["error"] = "arithmetic" if false else "other"
                if false:
                    record["false_equation"] = false[0]
            if scores is not None:
                record["score"] = scores[place]
            records.append(record)
        return records

    def process_results(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        """Metrics of one problem.

        Args:
            doc: The problem.
            results: One list of records, as `judge` gives them.

        Returns:
            `exact_match` (the share of right answers), `maj@k`, with a scorer `best@k`, `pass@k`,
            and the shares of the kinds of error. The shares add up to 1.
        """
        if self._bypassed:
            return super().process_results(doc, results)
        records: list[Record] = results[0]
        right = [record["right"] for record in records]
        votes = [record["vote"] for record in records]
        target = self.vote(str(self.doc_to_target(doc)))
        metrics = {"exact_match": mean(right)}
        metrics |= {f"maj@{k}": majority_at_k(votes, target, k) for k in self._ks}
        if self._scorer:
            scores = [record["score"] for record in records if "score" in record]
            metrics |= {f"best@{k}": best_at_k(scores, right, k) for k in self._ks}
        metrics |= {f"pass@{k}": pass_at_k(len(right), sum(right), k) for k in self._ks}
        errors = [record.get("error") for record in records]
        return metrics | {f"error_{kind}": errors.count(kind) / len(errors) for kind in ERRORS}


class LatexTask(MathsTask):
    """Results are LaTeX, compared as the harness's `hendrycks_math500` compares them."""

    def vote(self, result: str) -> str | None:
        """The form that the harness's `strip_string` gives; None if nothing is left."""
        from lm_eval.tasks.hendrycks_math.utils import strip_string

        try:
            return strip_string(result) or None
        except (AssertionError, IndexError, ValueError):
            # It cannot read this, and then the harness compares letter by letter. A stripped form
            # has no line break, so this one equals none of those.
            return "\n" + result


class SumTask(MathsTask):
    """The demo's sums: the problem is the first half of the equation that the answer completes."""

    def working(self, document: Document, answer: str) -> str:
        """Problem and answer."""
        return document["problem"] + answer


def with_results(dataset: Any) -> Any:
    """Documents of MATH with the result that their solution ends in, as the harness makes them."""
    from lm_eval.tasks.hendrycks_math.utils import process_docs

    return process_docs(dataset)


def _read_ks(given: object, repeats: int) -> tuple[int, ...]:
    ks = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    numbers = [k for k in ks if isinstance(k, int)]
    if len(numbers) != len(list(ks)):
        raise OptionError(f"k={given!r} is no whole number and no list of them, such as [1, 4]")
    return check_ks(numbers, repeats)
