"""Chat templates: selection by name, rendering, and the token that ends reasoning.

Differs from `hf` in one point: a template chosen by name is the one that is rendered, not only
the one that is recorded.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_exl2.errors import OptionError

if TYPE_CHECKING:
    from lm_eval_exl2.encode import Encoder

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ChatTemplates:
    """Renders conversations with a tokenizer's templates."""

    tokenizer: Any
    arguments: dict[str, Any]
    enable_thinking: bool | None = None
    selected: str | None = None
    """Text of the template chosen by name; None for the tokenizer's default."""

    def require(self) -> None:
        """Check that there is a template at all.

        Raises:
            OptionError: there is none.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise OptionError(
                "the tokenizer has no chat template; leave out --apply_chat_template or give a "
                "tokenizer that has one"
            )

    def render(self, history: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """Render a conversation to text.

        A template that rejects a system message is tried again without it, as `hf` does.
        """
        from jinja2.exceptions import TemplateError

        self.require()
        try:
            return self._render(history, add_generation_prompt)
        except TemplateError:
            logger.warning("the chat template failed; trying without the system message")
            return self._render(
                [message for message in history if message["role"] != "system"],
                add_generation_prompt,
            )

    def _render(self, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        chosen = {"chat_template": self.selected} if self.selected else {}
        return self.tokenizer.apply_chat_template(
            history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **chosen,
            **self._all_arguments(),
        )

    def _all_arguments(self) -> dict[str, Any]:
        thinking = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return self.arguments | thinking

    def fingerprint(self, *, selected: bool = True) -> str:
        """Return a digest of the templates and everything that changes what they render.

        Args:
            selected: Include which of several templates was chosen.
        """
        content = [
            getattr(self.tokenizer, "chat_template", None),
            self.selected if selected else None,
            self._all_arguments(),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def resolve_think_end(encoder: Encoder, think_end: str | int | None) -> str | int | None:
    """Return how the end of reasoning is recognised.

    A marker that is a single special token is matched by its id, since decoding drops it.
    """
    if not isinstance(think_end, str):
        return think_end
    token_id = encoder.tokenizer.get_vocab().get(think_end)
    return token_id if token_id is not None and encoder.is_special(token_id) else think_end
