"""The special tokens that matter in a reply although decoded text leaves them out.

They mark reasoning, are part of a stop string, or close a turn of the chat template. Knows a
tokenizer. Knows nothing of models, depth or terminals.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d3cli.base.errors import ModelError, Setting, Words
from d3cli.text.reasoning import TAGS, closing_tag
from d3cli.text.renderer import Renderer
from d3cli.text.stop_strings import escaped, marked

# A conversation for looking at what a template writes between two messages. Templates do not
# change or contain these words.
_PROBE = ("quser", "qanswer", "qnext")


def skipped_tokens(tokenizer: Any) -> dict[str, int]:
    """The special tokens, which are left out of decoded text, with their ids."""
    also = set(tokenizer.all_special_ids)
    return {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or token_id in also
    }


def reply_writing(
    tokenizer: Any, stops: Sequence[str], ends: Collection[int]
) -> tuple[dict[int, str], tuple[str, ...]]:
    """How to write a reply's control tokens, and its stop strings for text that is so written.

    A special token that marks reasoning is written as it is. One that a stop string contains is
    written as a mark, which stands in the stop string as well and is never shown. An added token
    that ends a reply is not written, special or not.
    """
    skipped = skipped_tokens(tokenizer)
    written = {id_: "" for id_ in ends if id_ in tokenizer.added_tokens_decoder}
    thinking = {skipped[name]: name for name in _thinking(skipped)}
    written = thinking | written
    hidden = {name: id_ for name, id_ in skipped.items() if not written.get(id_)}
    marks, all_stops = marked(stops, list(hidden))
    return written | {hidden[name]: mark for name, mark in marks.items()}, all_stops


def _thinking(names: Collection[str]) -> set[str]:
    """Those of the tokens that tags of reasoning consist of."""
    named = [(name, closing_tag(name)) for name in names if closing_tag(name)]
    found = set()
    for start, end in (*TAGS, *named):
        found |= {tag for tag in (start, end) if tag in names}
        if any(start.startswith(name) for name in names):
            found |= {name for name in names if name in start or name in end}
    return found


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What a chat template writes after a reply, where the model's ends do not include it.

    Attributes:
        token_id: the token that closes the turn, and so ends a reply; None if there is none.
        text: what the template writes instead of such a token; empty if nothing.
    """

    token_id: int | None = None
    text: str = ""

    @property
    def notes(self) -> tuple[Words, ...]:
        """What a user should know about it."""
        if not self.text:
            return ()
        text = escaped(self.text)
        return (
            (
                f"the chat template writes '{text}' after a reply. That is not one of the model's "
                "tokens, so the reply does not end there: ",
                Setting("stop", text),
                " ends it",
            ),
        )


def find_turn_end(
    tokenizer: Any, renderer: Renderer, template: str, ends: Collection[int]
) -> TurnEnd:
    """Finds what closes a reply in a chat template; nothing if that is one of the `ends`.

    A template that fails closes nothing: encoding a conversation reports the failure.
    """
    between = _after_a_reply(tokenizer, renderer, template) if template else ""
    closing = between.strip()
    added = {
        token.content: id_
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
    }
    known = [tokenizer.convert_ids_to_tokens(id_) for id_ in ends]
    if not closing or any(token and token in between for token in known):
        return TurnEnd()
    first = max((name for name in added if closing.startswith(name)), key=len, default="")
    if not first:
        before = min((between.find(name) for name in added if name in between), default=None)
        return TurnEnd(text=between[:before].rstrip())
    # gpt-oss writes a reply in parts and ends each with this token; the answer is the last part.
    part = first == "<|end|>" and "<|channel|>" in added
    return TurnEnd() if part else TurnEnd(added[first])


def _after_a_reply(tokenizer: Any, renderer: Renderer, template: str) -> str:
    """The text between a reply and the user's next message; empty if the template fails."""
    user, answer, following = _PROBE
    turns = (("user", user), ("assistant", answer), ("user", following))
    plain = [{"role": role, "content": text} for role, text in turns]
    typed: list[dict[str, Any]] = [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in plain
    ]
    variables: Mapping[str, Any] = dict(tokenizer.special_tokens_map)
    system = {"role": "system", "content": "qsystem"}  # some templates insist on one
    for conversation in (plain, typed, [system, *plain]):
        try:
            text = renderer.render(template, conversation, variables)
        except ModelError:
            continue
        # A template may write all of a message in upper case, or its first letter.
        found = re.search(f"{answer}(.*?){following}", text, re.DOTALL | re.IGNORECASE)
        if found:
            return found[1]
    return ""
