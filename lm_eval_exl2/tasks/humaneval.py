"""HumanEval (Chen et al. 2021): a function's signature and docstring, tests of its body."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from lm_eval_exl2.sandbox import Program
from lm_eval_exl2.tasks.programs import Document, ProgramTask


class HumanEval(ProgramTask):
    """The answer follows the prompt, as in the harness's `humaneval`."""

    def program(self, document: Document, answer: str) -> Program:
        """Prompt and answer, with the problem's tests."""
        return _make_program(document, self.complete(answer))

    def reference(self, document: Document) -> Program:
        """Prompt and canonical solution."""
        return _make_program(document, document["canonical_solution"])

    def complete(self, answer: str) -> str:
        """What of an answer follows the prompt."""
        return answer


class HumanEvalInstruct(HumanEval):
    """The answer ends at the fence of its code block, as in the harness's `humaneval_instruct`."""

    def complete(self, answer: str) -> str:
        """The answer up to the closing fence."""
        return answer.partition("```")[0]


class HumanEvalExllamav2(HumanEval):
    """The answer is cut and indented as exllamav2's `eval/humaneval.py` does.

    It ends before the first line, after its first, that begins with something else than a blank.
    What remains is stripped and indented by four spaces.
    """

    def complete(self, answer: str) -> str:
        """The answer by that rule."""
        first, *lines = answer.split("\n")
        body = [first]
        for line in lines:
            if line and not line[0].isspace():
                break
            body.append(line)
        return "    " + "\n".join(body).strip()


def _make_program(document: Document, completion: str) -> Program:
    entry_point = document["entry_point"]
    return Program(
        source=document["prompt"] + completion,
        tests=f"{document['test']}\ncheck({entry_point})",
        # Some tests use other functions of the prompt, such as `poly` and `encode_cyclic`.
        helpers=document["prompt"],
        names=(entry_point,),
    )
