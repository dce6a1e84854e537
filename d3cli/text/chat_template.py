"""Turns messages into token ids by a model's chat template.

`renderer` runs the template. Knows a tokenizer. Knows nothing of models, depth or terminals.
"""

import re
from collections.abc import Sequence
from typing import Any

from transformers.utils.chat_template_utils import mark_control_tokens

from d3cli.base.errors import ModelError, PromptError, Setting, UsageError
from d3cli.text.reasoning import split_reasoning
from d3cli.text.renderer import Renderer, unusable
from d3cli.text.thinking_switch import Switch, find_switch
from d3cli.text.tokens import check_length, encode_beginning
from d3cli.text.whole_rendering import render_whole

Message = dict[str, str]


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    renderer: Renderer,
    *,
    context: int | None = None,
    chat_template: str | None = None,
    think: bool | None = None,
) -> list[int]:
    """The token ids of a conversation, up to the beginning of the model's turn.

    Control tokens written inside a message stay text. The template gets the reasoning of an earlier
    reply apart from the answer, as ``reasoning_content``; most templates drop it. All other text
    stands in the rendering. A model without a template reads the messages as they are, separated by
    blank lines.

    Args:
        context: the model's context length. A conversation far beyond it is refused before it is
            rendered.
        chat_template: a Jinja template to use instead of the tokenizer's own.
        think: turns a reasoning model's thinking on or off; None keeps its default.

    Raises:
        PromptError: the last message is empty, or a message lacks role or content.
        ContextFullError: the conversation has more than twice as many tokens as the context.
        UsageError: `think` is given, but the template has no such switch.
        ModelError: the template refuses these messages, leaves one out, is broken, or exceeds a
            limit.
    """
    text = _joined(messages)
    if context is not None:
        check_length(tokenizer, text, context)
    template = chat_template or own_template(tokenizer)
    variables = _variables(tokenizer, renderer, chat_template, think)
    if not template:
        text = "\n\n".join(message["content"] for message in messages)
        return encode_beginning(tokenizer, text, split_special_tokens=True)
    marked = mark_control_tokens(
        [_with_reasoning(message) for message in messages], _control_tokens(tokenizer, template)
    )
    text = render_whole(
        lambda messages: renderer.render(template, messages, variables),
        marked,
        template=template,
        of=_named(chat_template),
    )
    try:
        # Not verbose: what does not fit the context is refused later.
        encoded = tokenizer(
            text, add_special_tokens=False, sanitize_control_tokens=True, verbose=False
        )
    except ValueError as error:  # a control token cannot be told from text
        raise unusable(str(error)) from error
    ids = list(encoded["input_ids"])
    if not ids:
        raise ModelError(
            (*_named(chat_template), " writes nothing that the tokenizer knows"),
            ("try another ", Setting("chat_template")),
        )
    return ids


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    renderer: Renderer,
    *,
    think: bool | None = None,
) -> str:
    """The text of a conversation, up to the beginning of the model's turn.

    Only for programs that pass prompts as text: a control token that is written inside a message is
    one for whoever encodes this. `encode_chat` keeps it text.

    Args:
        think: as for `encode_chat`.

    Raises:
        PromptError, UsageError: as for `encode_chat`.
        ModelError: there is no chat template, or it cannot render these messages.
    """
    _joined(messages)
    template = own_template(tokenizer)
    if not template:
        raise ModelError("this model has no chat template", "use its prompts as they are")
    variables = _variables(tokenizer, renderer, None, think)
    return render_whole(
        lambda messages: renderer.render(template, messages, variables),
        [_with_reasoning(message) for message in messages],
        template=template,
        of=_named(None),
    )


def _variables(
    tokenizer: Any, renderer: Renderer, chat_template: str | None, think: bool | None
) -> dict[str, Any]:
    """What a template is rendered with; raises UsageError as `check_thinking_switch` does."""
    variables = dict(tokenizer.special_tokens_map)
    if think is not None:
        switch = check_thinking_switch(tokenizer, renderer, chat_template)
        variables |= switch.variables(think)
    return variables


def check_template(
    tokenizer: Any,
    renderer: Renderer,
    roles: Sequence[str],
    chat_template: str | None = None,
) -> None:
    """Refuses a chat template that cannot render any conversation of messages with these roles.

    Raises:
        ModelError: as for `encode_chat`.
    """
    if chat_template or own_template(tokenizer):
        probe = [{"role": role, "content": "Hello."} for role in roles]
        encode_chat(tokenizer, probe, renderer, chat_template=chat_template)


def _named(chat_template: str | None) -> tuple[str | Setting, ...]:
    """What an error calls the template: the one given, or the model's own."""
    if chat_template:
        return ("the template of ", Setting("chat_template"))
    return ("this model's chat template",)


def _joined(messages: Sequence[Message]) -> str:
    """All text of a conversation, one message per line; refuses what cannot be rendered."""
    try:
        texts = [message["role"] and message["content"] for message in messages]
        whole = "\n".join(texts)
    except (KeyError, TypeError) as error:
        raise PromptError(
            "the prompt is neither a text nor a list of messages",
            'a message is {"role": "user", "content": "…"}',
        ) from error
    if not texts or not texts[-1].strip():
        raise PromptError("the prompt is empty", "give it some text")
    return whole


def thinking_switch(
    tokenizer: Any, renderer: Renderer, chat_template: str | None = None
) -> Switch | None:
    """How to turn thinking on or off, so that `encode_chat` accepts `think`; None if it cannot be.

    Raises:
        ModelError: as for `own_template`.
    """
    template = chat_template or own_template(tokenizer)
    return find_switch(renderer, template, tokenizer.special_tokens_map)


def check_thinking_switch(
    tokenizer: Any, renderer: Renderer, chat_template: str | None = None
) -> Switch:
    """Refuses to turn thinking on or off where the template has no switch for it.

    Raises:
        UsageError: it has none.
        ModelError: as for `own_template`.
    """
    switch = thinking_switch(tokenizer, renderer, chat_template)
    if switch is None:
        raise UsageError(
            (*_named(chat_template), " has no thinking switch"),
            ("leave ", Setting("think"), " at its default"),
            field="think",
        )
    return switch


def own_template(tokenizer: Any) -> str:
    """The tokenizer's chat template, or its default one if it has several; empty without one.

    A byte order mark at the beginning of its file is left out.

    Raises:
        ModelError: it has several, and none is the default.
    """
    try:
        if not tokenizer.chat_template:
            return ""
        return str(tokenizer.get_chat_template()).removeprefix("\ufeff")
    except ValueError as error:
        raise ModelError(
            "this model has several chat templates and no default one",
            ("choose one of its files: ", Setting("chat_template", "FILE")),
        ) from error


def _with_reasoning(message: Message) -> Message:
    if message["role"] != "assistant":
        return dict(message)
    reasoning, answer = split_reasoning(message["content"])
    return {**message, "content": answer} | ({"reasoning_content": reasoning} if reasoning else {})


def _control_tokens(tokenizer: Any, template: str) -> "re.Pattern[str]":
    """Matches the added tokens that must stay text inside a message.

    These are special tokens, tokens that the template writes, and tokens that look like ``<|…|>``.
    The last are included because a template may build them from pieces (``'<|' + role + '|>'`` in
    Phi-4-mini), where transformers' own search does not find them.
    """
    tokens = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special
        or (
            not token.content.isspace()
            and (token.content in template or re.fullmatch(r"<\|.*\|>", token.content))
        )
    ]
    # Longest first: a token takes priority over the tokens that it contains.
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
