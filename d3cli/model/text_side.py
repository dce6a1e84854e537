"""How a model's text becomes tokens, and how its replies end. Knows nothing of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from d3cli.base.errors import ModelError
from d3cli.text.chat_template import own_template
from d3cli.text.control_tokens import TurnEnd, find_turn_end
from d3cli.text.renderer import Renderer


@dataclass(frozen=True, slots=True)
class TextSide:
    """How a model's text becomes tokens, and how a reply is written and ends.

    Attributes:
        tokenizer: a transformers tokenizer.
        renderer: renders chat templates; in a child process, unless the model is known by name.
        eos_token_ids: tokens that end a reply by the checkpoint's and the tokenizer's settings.
        generation_settings: the checkpoint's generation_config.json, or, if it has none, its
            config.json.
    """

    tokenizer: Any
    renderer: Renderer
    eos_token_ids: frozenset[int]
    generation_settings: Mapping[str, Any]
    _turn_ends: dict[str, TurnEnd] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def turn_end(self, chat_template: str | None = None) -> TurnEnd:
        """What closes a reply in a chat template besides `eos_token_ids`; None: in the model's own.

        A template is rendered once for this.
        """
        try:
            template = chat_template or own_template(self.tokenizer)
        except ModelError:  # it has several; only a conversation needs one of them
            return TurnEnd()
        if template not in self._turn_ends:
            self._turn_ends[template] = find_turn_end(
                self.tokenizer, self.renderer, template, self.eos_token_ids
            )
        return self._turn_ends[template]

    def reply_ends(self, chat_template: str | None = None) -> frozenset[int]:
        """The tokens that end a reply: `eos_token_ids`, and the token that closes a turn."""
        closing = self.turn_end(chat_template).token_id
        return self.eos_token_ids | ({closing} if closing is not None else frozenset())
