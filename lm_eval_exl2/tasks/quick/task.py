"""Quick tasks: a stock task of the harness over a committed slice of its documents.

Everything but the choice of documents is the stock task's own: its YAML is read from the installed
harness, so documents, prompts and few-shot examples are byte for byte those of a full run in one
process, and `doc_id` is the index in the full split (in all subjects' splits joined, for MMLU).
"""

# The harness ships without types:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

import logging
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lm_eval.tasks
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_exl2.errors import OptionError, RequestError
from lm_eval_exl2.plugin import task_configs_path
from lm_eval_exl2.tasks.base import OwnTask
from lm_eval_exl2.tasks.quick import screening, slices
from lm_eval_exl2.tasks.quick.shots import BySubject, Document, InStep

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)

# Say of a stock task where it belongs, not what it asks.
_NOT_INHERITED = ("task", "task_alias", "tag", "group", "task_list", "metadata")


class PlacedDocument(dict[str, Any]):
    """A document that knows its index in the full split; otherwise the same dict."""

    def __init__(self, document: dict[str, Any], place: int) -> None:
        super().__init__(document)
        self.place = place


class QuickTask(OwnTask):
    """A stock task over the documents of a slice.

    Its YAML says in `metadata` which: `full`, a YAML of the harness's or this package's task
    folder, and `slice`, a name in `ids.json`; `graded: true` where scores are not right or wrong.
    Every other key replaces the stock task's.
    """

    def __init__(self, *, config: dict[str, Any]) -> None:
        """As the harness calls it.

        Raises:
            OptionError: The harness has no such task, or the data set has another size than the
                one the slice was drawn for.
        """
        stock = _stock_config(config["metadata"]["full"])
        version = (stock.get("metadata") or {}).get("version")
        inherited = {key: value for key, value in stock.items() if key not in _NOT_INHERITED}
        self.slice = slices.find(config["metadata"]["slice"])
        self._chosen: Any = None
        self._asked = len(self.slice.places)
        super().__init__(config={**inherited, **config})
        self.config.metadata |= {
            "full_version": version,
            "seed_of_slice": slices.SEED,
            "documents_of_full": sum(self.slice.sizes.values()),
        }
        self._shots = self._make_sampler()
        self.sampler = self._shots

    @cached_property
    def full_documents(self) -> "Dataset":
        """The whole split that the stock task evaluates, as it evaluates it."""
        found: Any = super().eval_docs
        self._check(found)
        return found

    @property
    def eval_docs(self) -> "Dataset":
        """The documents of the slice."""
        if self._chosen is None:
            self._chosen = self.full_documents.select(self.slice.places)
        return self._chosen

    def _check(self, found: "Dataset") -> None:
        (part,) = self.slice.sizes
        slices.check_sizes(self.config.metadata["slice"], {part: len(found)})

    def _make_sampler(self) -> InStep | BySubject:
        return InStep(
            self.sampler, cast("Iterable[Document]", self.full_documents), self.slice.places
        )

    def doc_iterator(
        self,
        *,
        rank: int = 0,
        limit: int | None = None,
        world_size: int = 1,
        samples: list[int] | None = None,
    ) -> Iterator[tuple[int, PlacedDocument]]:
        """The slice's documents with their index in the full split as `doc_id`.

        Raises:
            RequestError: `--samples` asks for documents of its own.
        """
        if samples:
            raise RequestError(
                f"{self.config.task}: --samples was given, but a quick task's documents are fixed; "
                "use --limit N for the first N of the slice, or --samples with the full task"
            )
        given = super().doc_iterator(rank=rank, limit=limit, world_size=world_size)
        for number, document in given:
            place = self.slice.places[number]
            yield place, PlacedDocument(document, place)

    def fewshot_context(self, doc: PlacedDocument, *arguments: Any, **named: Any) -> Any:
        """The prompt, with the examples that the full run gives this document."""
        self._shots.at(doc.place)
        return super().fewshot_context(doc, *arguments, **named)

    def build_all_requests(self, *, limit: int | None = None, **named: Any) -> None:
        """As the harness does; keeps in mind how many documents there will be."""
        whole = len(self.slice.places)
        self._asked = min(int(limit), whole) if limit else whole
        super().build_all_requests(limit=limit, **named)

    def apply_filters(self) -> Any:
        """As the harness does; then, just before the table, says what the size can rule out."""
        filtered = super().apply_filters()
        if "bypass" in self._metric_fn_list:  # --predict_only: no scores
            return filtered
        graded = bool(self.config.metadata.get("graded"))
        reach = screening.reach(self._asked, graded=graded)
        sentence = screening.statement(self._asked, graded=graded)
        self.config.metadata["can_rule_out_a_drop_of"] = reach._asdict()
        self.config.metadata["screening"] = sentence
        at_best = screening.per_cent(reach.at_best)
        self.config.task_alias = f"{self.config.task} (can rule out a drop of {at_best} at best)"
        # Not an info: nothing of this package but warnings reaches the terminal.
        _log.warning("%s: %s", self.config.task, sentence)
        return filtered


class QuickSubjects(QuickTask):
    """One quick task over many stock tasks that differ in their subject only, such as MMLU's.

    The data set has one configuration per part of the slice; its documents name it in `subject`,
    which a template in `description` can use.
    """

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **named: Any) -> None:
        """Loads all subjects and joins them in the order of the slice's parts."""
        from datasets import concatenate_datasets

        by_subject: dict[str, Any] = {}
        for subject in self.slice.sizes:
            self.DATASET_NAME = subject
            self.config.metadata["subject"] = subject  # for a custom_dataset
            super().download(dataset_kwargs, **named)
            by_subject[subject] = self.dataset
        del self.config.metadata["subject"]
        tested, examples = self.config.test_split, self.fewshot_cfg.split
        sizes = {subject: len(splits[tested]) for subject, splits in by_subject.items()}
        slices.check_sizes(self.config.metadata["slice"], sizes)
        self._examples = {subject: splits[examples] for subject, splits in by_subject.items()}
        self.dataset = {
            split: concatenate_datasets([splits[split] for splits in by_subject.values()])
            for split in (tested, examples)
        }

    def _check(self, found: "Dataset") -> None:
        names = list(found["subject"])
        ends = accumulate(self.slice.sizes.values())
        for (subject, size), end in zip(self.slice.sizes.items(), ends, strict=True):
            if different := set(names[end - size : end]) - {subject}:
                raise OptionError(
                    f"{self.config.task}: documents of {subject} say they are about "
                    f"{', '.join(sorted(different))}; use the data set that the stock task uses"
                )

    def _make_sampler(self) -> InStep | BySubject:
        sampler = type(self.sampler)
        samplers = {name: sampler(list(split)) for name, split in self._examples.items()}
        return BySubject(samplers, list(self.full_documents["subject"]))


def _stock_config(name: str) -> dict[str, Any]:
    """A task's YAML with its includes, from the harness's folder or this package's."""
    folders = (Path(lm_eval.tasks.__file__).parent, task_configs_path())
    for folder in folders:
        if (folder / name).is_file():
            return load_yaml(folder / name)
    raise OptionError(
        f"the installed lm-eval has no task file {name}; this quick task was written for lm-eval "
        "0.4.13: install that version, or run the full task under its new name"
    )
