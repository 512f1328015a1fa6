"""The harness's side of `exl2_quality`: how prompts are put, and metrics handed back."""

# The harness ships without types:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean

from lm_eval_exl2.tasks.base import OwnTask
from lm_eval_exl2.tasks.quality.judge import FAULTS, score
from lm_eval_exl2.tasks.quality.prompts import read_prompt
from lm_eval_exl2.tasks.quality.samples import Sample, check_reference, read_samples
from lm_eval_exl2.tasks.quality.similarity import rouge_l, sentence_bleu

Document = dict[str, Any]

_BETTER_HIGH: Final = ("clean", "limits_kept", "exact", "rougeL", "sentence_bleu")


class Quality(OwnTask):
    """A task of written answers that are judged by rules.

    Of its `metadata`, which `--metadata` can change: `reference`, the path of a samples file of the
    same task, whose answers are compared with.
    """

    def __init__(self, *, config: dict[str, Any]) -> None:
        """As the harness calls it; reads the reference before anything is generated.

        Raises:
            OptionError: The reference is no samples file of a quality task.
        """
        super().__init__(config=config)
        self._plain_stops = self.config.generation_kwargs["until"]
        names = [*_BETTER_HIGH, *(name for name in FAULTS if name != "limits")]
        self._aggregation_list = dict.fromkeys(names, mean)
        self._higher_is_better = {name: name in _BETTER_HIGH for name in names}
        self._reference: dict[str, Sample] = {}
        self._reference_path: Path | None = None
        if path := self.config.metadata.get("reference"):
            self._reference_path = Path(str(path))
            self._reference = read_samples(self._reference_path)
            digest = hashlib.sha256(self._reference_path.read_bytes()).hexdigest()
            self.config.metadata["reference_sha256"] = digest

    def build_all_requests(self, **given: Any) -> None:
        """Build the requests as the harness does, and check that the reference has their prompts.

        Raises:
            OptionError: It has not.
        """
        super().build_all_requests(**given)
        if self._reference_path is not None:
            asked = {each.doc["id"]: each.doc["prompt"] for each in self.instances}
            check_reference(self._reference, asked, self._reference_path)

    def fewshot_context(
        self,
        doc: Document,
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., Any] | None = None,
        gen_prefix: str | None = None,
    ) -> Any:
        """Put a prompt to a chat model as a conversation, to a base model as plain text.

        Args:
            doc: The prompt.
            num_fewshot: 0; there are no worked examples.
            system_instruction: Stands before the prompt's own instruction.
            apply_chat_template: Whether to make a conversation.
            fewshot_as_multiturn: Changes nothing without examples.
            chat_template: Renders messages.
            gen_prefix: None; this task has no beginnings of answers.

        Returns:
            With a chat template, the instruction as system message and the prompt alone as the
            user's. A template that drops system messages gets both in one message. Without a
            template, the instruction, a blank line and `doc_to_text`.
        """
        parts = [system_instruction, doc["instruction"]]
        instruction = "\n\n".join(part for part in parts if part)
        if not apply_chat_template or chat_template is None:
            return f"{instruction}\n\n{self.doc_to_text(doc)}"
        user = {"role": "user", "content": doc["prompt"]}
        context = chat_template([{"role": "system", "content": instruction}, user])
        if doc["instruction"] in str(context):
            return context
        return chat_template([{"role": "user", "content": f"{instruction}\n\n{doc['prompt']}"}])

    def construct_requests(
        self, doc: Document, ctx: Any, **given: Any
    ) -> list[Instance] | Instance:
        """Make the request; a chat model gets no stops but its own, lest they hide a fault.

        Stops that are not the task's own (`--gen_kwargs until=...`) are left as they are.
        """
        is_chat = given.get("apply_chat_template") and given.get("chat_template")
        request = super().construct_requests(doc, ctx, **given)
        if is_chat and isinstance(request, Instance):
            arguments: dict[str, Any] = request.arguments[1]
            if arguments.get("until") == self._plain_stops:
                arguments["until"] = []
        return request

    def process_results(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        """Metrics of one document.

        Args:
            doc: The prompt.
            results: The answer alone.

        Returns:
            What `judge.score` gives, and with a reference `rougeL` and `sentence_bleu`.
        """
        if self._bypassed:
            return super().process_results(doc, results)
        answer = results[0]
        metrics: dict[str, Any] = dict(score(read_prompt(doc), answer))
        if self._reference:
            reference = self._reference[doc["id"]].answer
            metrics["rougeL"] = rouge_l(reference, answer)
            metrics["sentence_bleu"] = sentence_bleu(reference, answer)
        return metrics
