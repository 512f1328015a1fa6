"""Tasks whose answers are programs: runs them in the sandbox and turns verdicts into pass@k.

The harness hands all answers of a task to its filter at once; there they run in a pool. What comes
out is one verdict per answer, and `process_results` only counts. A verdict that says nothing (a
sandbox error) is left out and counted apart.
"""

# The harness ships without types:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from lm_eval.api.filter import Filter, FilterEnsemble
from lm_eval.api.metrics import mean
from lm_eval.filters import build_filter_ensemble
from tqdm import tqdm

from lm_eval_exl2.sandbox import Measured, Outcome, Program, Sandbox, Verdict
from lm_eval_exl2.tasks.base import OwnTask
from lm_eval_exl2.tasks.pass_at_k import check_ks, pass_at_k, sampling_stderr, sampling_variance

_log = logging.getLogger(__name__)

Document = dict[str, Any]


@cache
def _open_sandbox(level: str) -> Sandbox:
    return Sandbox(level)


class ProgramTask(OwnTask):
    """A task of the harness that judges programs.

    Of its `metadata`, which `--metadata` can change: `k` (list of k for pass@k; default [1]) and
    `sandbox` ("auto", "bubblewrap", "landlock"; "none" runs programs without isolation, marks the
    task unsafe, and the harness then demands `--confirm_run_unsafe_code`).
    """

    def __init__(self, *, config: dict[str, Any]) -> None:
        """As the harness calls it; opens and tests the sandbox before anything is generated.

        Raises:
            OptionError: A k is larger than the number of answers per problem.
            SandboxError: No sandbox, or not the one asked for, holds on this machine.
        """
        super().__init__(config=config)
        self._repeats: int = self.config.repeats
        metadata = self.config.metadata
        self._ks = check_ks(metadata.get("k", [1]), self._repeats)
        level = metadata.get("sandbox", "auto")
        if level == "none":
            self.UNSAFE_CODE = True
        self._sandbox = _open_sandbox(level)
        self._filters = [FilterEnsemble("run_programs", [lambda: _RunPrograms(self)])]
        self._set_metrics()

    @abstractmethod
    def program(self, document: Document, answer: str) -> Program:
        """The program that an answer makes, with the document's tests."""

    @abstractmethod
    def reference(self, document: Document) -> Program:
        """The document's own solution, with its tests; sets the time limit."""

    def _set_metrics(self) -> None:
        self._aggregation_list: dict[str, Callable[[list[Any]], Any]] = {"sandbox_errors": sum}
        self._higher_is_better: dict[str, bool] = {"sandbox_errors": False}
        for k in self._ks:
            self._aggregation_list[f"pass@{k}"] = mean
            self._higher_is_better[f"pass@{k}"] = True
            if self._repeats > 1:
                self._aggregation_list[f"pass@{k}_sampling_stderr"] = sampling_stderr
                self._higher_is_better[f"pass@{k}_sampling_stderr"] = False

    def override_metric(self, metric_name: str) -> None:
        """Runs no programs, as `--predict_only` asks."""
        super().override_metric(metric_name)
        self._filters = [build_filter_ensemble("none", [("take_first", None)])]

    def process_results(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        """Metrics of one document.

        Args:
            doc: The problem; not needed, the verdicts are there.
            results: One list of verdicts, as `judge` gives them.

        Returns:
            `pass@k`, for n > 1 answers `pass@k_sampling_stderr` (the document's variance; the
            standard error after aggregation), and `sandbox_errors`.
        """
        if self._bypassed:
            return super().process_results(doc, results)
        outcomes = [verdict["outcome"] for verdict in results[0]]
        errors = outcomes.count(Outcome.SANDBOX_ERROR)
        judged, right = len(outcomes) - errors, outcomes.count(Outcome.PASSED)
        metrics: dict[str, Any] = {}
        for k in self._ks:
            if judged < k:
                continue  # the harness then averages over the other documents, and says so
            metrics[f"pass@{k}"] = pass_at_k(judged, right, k)
            if self._repeats > 1:
                metrics[f"pass@{k}_sampling_stderr"] = sampling_variance(judged, right, k)
        return {**metrics, "sandbox_errors": errors}

    def judge(
        self, answers: Sequence[Sequence[str]], documents: Sequence[Document]
    ) -> list[list[dict[str, str]]]:
        """Runs all answers to all documents.

        Returns:
            For each document and answer, `outcome` and `message`.
        """
        measured = self._measure(documents)
        places = [place for place, given in enumerate(answers) for _ in given]
        programs = [
            self.program(document, answer)
            for document, given in zip(documents, answers, strict=True)
            for answer in given
        ]
        with tqdm(total=len(programs), desc="Running programs in the sandbox") as bar:
            verdicts = self._sandbox.judge(
                programs,
                limits_s=[measured.limits_s[place] for place in places],
                on_verdict=bar.update,
            )
        verdicts = [
            _beside(measured.verdicts[place], verdict)
            for place, verdict in zip(places, verdicts, strict=True)
        ]
        self._report(verdicts)
        rest = iter(verdicts)
        return [[_as_record(next(rest)) for _ in given] for given in answers]

    def _measure(self, documents: Sequence[Document]) -> Measured:
        measured = self._sandbox.measure([self.reference(document) for document in documents])
        failed = [
            str(document.get("task_id", place))
            for place, (document, verdict) in enumerate(
                zip(documents, measured.verdicts, strict=True)
            )
            if verdict.outcome is not Outcome.PASSED
        ]
        if failed:
            _log.warning(
                "%d of %d reference solutions do not pass their own tests in this sandbox (%s): an "
                "answer that does not pass there either is counted as a sandbox error",
                len(failed), len(documents), ", ".join(failed[:10]),
            )  # fmt: skip
        self.config.metadata["reference_solutions_failing"] = failed
        return measured

    def _report(self, verdicts: Iterable[Verdict]) -> None:
        """Puts into the results how programs were run and what became of them."""
        counts = Counter(verdict.outcome.value for verdict in verdicts)
        self.config.metadata["sandbox_used"] = self._sandbox.describe()
        self.config.metadata["outcomes"] = {
            outcome.value: counts[outcome.value] for outcome in Outcome
        }
        if errors := counts[Outcome.SANDBOX_ERROR.value]:
            _log.error(
                "%d programs could not be run (sandbox errors); they are left out of pass@k and "
                "counted as `sandbox_errors`; --log_samples keeps the reasons",
                errors,
            )


class _RunPrograms(Filter):
    """The harness's filter that turns answers into verdicts."""

    def __init__(self, task: ProgramTask) -> None:
        super().__init__()
        self._task = task

    def apply(self, resps: Any, docs: list[Document]) -> list[list[dict[str, str]]]:
        return self._task.judge(resps, docs)


def _beside(reference: Verdict, verdict: Verdict) -> Verdict:
    """What a verdict says where the reference solution got another one."""
    if reference.outcome is Outcome.PASSED or verdict.outcome is Outcome.PASSED:
        return verdict
    reason = f"{verdict.outcome} ({verdict.message}), but so is the reference solution"
    return Verdict(Outcome.SANDBOX_ERROR, reason, verdict.seconds)


def _as_record(verdict: Verdict) -> dict[str, str]:
    return {"outcome": verdict.outcome.value, "message": verdict.message}
