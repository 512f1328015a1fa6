"""A checkpoint loaded as `--model exl2` loads it, so that what is timed is what is scored.

Knows the adapter, its tokenizer and which checks apply; measures nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.bench import honesty
from lm_eval_exl2.bench.data import BenchPrompts, fit_prompts
from lm_eval_exl2.bench.prompt_bench import NATURAL_STOP
from lm_eval_exl2.checkpoint.summary import summarise
from lm_eval_exl2.errors import OptionError
from lm_eval_exl2.lm import Exl2LM
from lm_eval_exl2.prompts import PromptMaker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lm_eval_exl2.bench.honesty import Check
    from lm_eval_exl2.bench.prompt_bench import PromptBench
    from lm_eval_exl2.bench.scenarios import ScenarioRun
    from lm_eval_exl2.checkpoint import Checkpoint
    from lm_eval_exl2.engines.base import Engine


class BenchModel:
    """A loaded checkpoint and the prompts it is measured with."""

    def __init__(
        self,
        name: str,
        model_args: Mapping[str, Any],
        texts: Sequence[str],
        *,
        max_new_tokens: int,
    ) -> None:
        """Load.

        Args:
            name: Directory, hub id, or `demo...`.
            model_args: As for `--model exl2`, without `pretrained`.
            texts: Prompts.
            max_new_tokens: Room that their output needs.

        Raises:
            Exl2EvalError: it cannot be loaded, or no prompt fits.
        """
        make: Any = Exl2LM  # the harness's decorator hides its type
        self._lm: Any = make(name, **model_args)
        self.checkpoint: Checkpoint = self._lm.checkpoint
        checkpoint = self.checkpoint
        self.engine: Engine = self._lm.engine
        maker = PromptMaker(
            self._lm.encoder, self._lm.options, checkpoint.directory, self._lm.max_length
        )
        self.end_ids = maker.eos_ids
        self.fitted: BenchPrompts = fit_prompts(
            texts,
            self._lm.encoder.encode_prompt,
            max_new_tokens=max_new_tokens,
            window=self._lm.max_length,
        )
        summary = summarise(checkpoint)
        self.facts: dict[str, Any] = self._lm.get_model_info() | {
            "penalties_left_out": _penalties(maker),
            "kind": checkpoint.kind,
            "layers": checkpoint.config.sizes.layers,
            "hidden_size": checkpoint.config.sizes.hidden_size,
            "bits_layers": summary.bits_layers,
            "bits_head": summary.bits_head,
            "size_bytes": summary.size_bytes,
        }

    def bench_checks(self, bench: PromptBench, max_new_tokens: int) -> list[Check]:
        """Make every check that applies to a prompt bench."""
        if not bench.repetitions:
            return []
        requests = bench.repetitions[-1].requests
        found = [honesty.check_greedy(requests, self.fitted.prompts, self.engine)]
        if bench.ending == NATURAL_STOP:
            found.append(
                honesty.check_end(requests, end_ids=self.end_ids, max_new_tokens=max_new_tokens)
            )
        return found

    def scenario_checks(self, found: ScenarioRun) -> list[Check]:
        """Make every check that applies to a scenario's run."""
        encoder: Any = self._lm.encoder
        checks = [
            honesty.check_order(found.requests, rows=found.most_rows),
            honesty.check_end(
                found.requests, end_ids=self.end_ids, max_new_tokens=found.settings.max_new_tokens
            ),
            honesty.check_tokenizer(
                found.requests,
                decode=lambda ids: encoder.decode(ids, skip_special_tokens=False),
                encode=lambda text: encoder.tok_encode(text, add_special_tokens=False),
                largest_id=encoder.largest_id,
            ),
            honesty.check_greedy(found.requests, self.fitted.prompts, self.engine),
        ]
        if found.loadgen is not None:
            checks += [
                honesty.check_first_token(found.requests, found.told),
                honesty.check_counts(found.requests, found.told),
                honesty.check_prompts(found.requests, found.told),
            ]
        return checks


def _penalties(maker: PromptMaker) -> dict[str, Any]:
    """Return what generation_config.json adds to greedy decoding; measurements are plain greedy."""
    (prompt,) = maker.make([("a", {"max_gen_toks": 1})]).prompts
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return {name: value for name, value in prompt.sampling.items() if value != neutral[name]}


def read_scored(path: Path) -> dict[str, Any]:
    """Return the configuration of a harness run.

    Args:
        path: A `results_*.json`, or a folder that holds them; the newest counts.

    Raises:
        OptionError: there is none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("results_*.json"))
    try:
        return dict(json.loads(files[-1].read_text(encoding="utf-8"))["config"])
    except (IndexError, OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"--scored {path}: no results of the harness there; give its --output_path"
        ) from error
