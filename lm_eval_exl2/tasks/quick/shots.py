"""Few-shot examples for a slice: the ones that a run over the whole split takes.

The harness's sampler draws document after document from one random generator, so a document's
examples depend on how many came before it. A slice that drew by itself would ask other questions
than the full run, and the two could not be compared answer by answer.
"""

# The harness ships without types:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from lm_eval.api.samplers import ContextSampler

Document = dict[str, Any]


class InStep(ContextSampler):
    """Draws as a sampler does that is asked for every document of the split, in its order."""

    def __init__(
        self, sampler: ContextSampler, documents: Iterable[Document], places: Sequence[int]
    ) -> None:
        """Takes over from the harness's sampler.

        Args:
            sampler: Draws; nobody else may use it from now on.
            documents: The whole split.
            places: Indices of the slice's documents in it.
        """
        super().__init__(sampler.df)
        self._sampler = sampler
        self._documents = documents
        self._places = frozenset(places)
        self._seed: int | None = None
        self._place = 0
        self._drawn: dict[tuple[int, bool], dict[int, Sequence[Document]]] = {}

    def set_rnd(self, rnd: int | None) -> "InStep":
        """Start again with another seed."""
        self._seed = rnd
        self._drawn.clear()
        return self

    def at(self, place: int) -> None:
        """Say for which document of the split the next examples are."""
        self._place = place

    def sample(
        self, n: int, eval_doc: Document | None = None, df: Any = None, **_more: Any
    ) -> Sequence[Document]:
        """The n examples of the document of `at`.

        Args:
            n: How many.
            eval_doc: The document, where the harness wants it kept out of its own examples.
            df: Not used; the harness never passes another pool.
        """
        way = (n, eval_doc is not None)
        if way not in self._drawn:
            self._drawn[way] = self._draw_all(*way)
        return self._drawn[way][self._place]

    def _draw_all(self, n: int, exclude: bool) -> dict[int, Sequence[Document]]:
        self._sampler.set_rnd(self._seed)
        drawn: dict[int, Sequence[Document]] = {}
        for place, document in enumerate(islice(self._documents, max(self._places) + 1)):
            # Also for documents that are not in the slice: this moves the generator on.
            examples = self._sampler.sample(n, eval_doc=document if exclude else None)
            if place in self._places:
                drawn[place] = examples
        return drawn


class BySubject(ContextSampler):
    """Takes the examples from the document's own subject, the same for all its documents."""

    def __init__(self, samplers: Mapping[str, ContextSampler], subjects: Sequence[str]) -> None:
        """Holds one sampler per subject.

        Args:
            samplers: Which draw without a random generator, such as the harness's `first_n`.
            subjects: The subject of each document, by its place.
        """
        super().__init__()
        self._samplers = samplers
        self._subjects = subjects
        self._place = 0

    def at(self, place: int) -> None:
        """Say for which document the next examples are."""
        self._place = place

    def sample(self, n: int, eval_doc: Document | None = None, df: Any = None, **_more: Any) -> Any:
        """The first n examples of the subject."""
        return self._samplers[self._subjects[self._place]].sample(n, eval_doc=eval_doc)
