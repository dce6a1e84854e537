"""Turns messages into token ids: renders a model's chat template within limits.

A chat template is a program that comes with a model. Trusted templates run in this process, all
others in a child process with limits (`template_sandbox`). Knows a tokenizer. Knows nothing of
models, depth or terminals.
"""

import json
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from transformers.utils.chat_template_utils import mark_control_tokens

from d3cli.base.errors import ModelError, PromptError, Setting, UsageError
from d3cli.text import template_sandbox
from d3cli.text.reasoning import split_reasoning
from d3cli.text.tokens import check_length, encode_beginning
from d3cli.text.whole_rendering import TemplateFailedError, TemplateMessage, render_whole

Message = dict[str, str]

LARGEST_TEMPLATE = 1 << 20  # characters; real templates have 1,000 to 60,000
# The output may have 8 times the characters of conversation and template (text grows when it is
# written as JSON), and a million more.
LARGEST_GROWTH, LARGEST_ADDITION = 8, 1 << 20
# Seconds by the clock for the child to start, with its imports from a cold disk, and to render
# once. The child limits its own processor time; on a busy machine a rendering waits for its turn.
START_LIMIT, RENDER_LIMIT = 60.0, 30.0
SWITCH = "enable_thinking"  # the variable by which a template turns thinking on or off


class Renderer:
    """Renders chat templates. Untrusted ones run in a child process, which is kept and reused.

    Args:
        trusted: templates that may run in this process.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted = frozenset(trusted)
        self._child: subprocess.Popen[str] | None = None
        self._ready = False
        self._asking = False

    def interrupt(self) -> None:
        """Makes a rendering in the child fail at once. Called from another thread."""
        if self._asking and self._child is not None:
            self._child.kill()

    def start(self) -> None:
        """Starts the child in the background, so that it is ready for the first template."""
        if self._child is None or self._child.poll() is not None:
            self._ready = False
            self._child = subprocess.Popen(  # noqa: S603 - no shell, nothing from outside
                # -P: do not import from the working directory.
                [sys.executable, "-P", "-m", template_sandbox.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C does not reach it
            )
            weakref.finalize(self, _stop, self._child)

    def render(
        self, template: str, messages: Sequence[TemplateMessage], variables: Mapping[str, Any]
    ) -> str:
        """The text of a conversation, up to the beginning of the model's turn.

        Raises:
            TemplateFailedError: the template fails.
            ModelError: it exceeds a limit.
        """
        if len(template) > LARGEST_TEMPLATE:
            raise _unusable(
                f"it has {len(template):,} characters; the limit is {LARGEST_TEMPLATE:,}"
            )
        length = len(template) + sum(len(str(part)) for one in messages for part in one.values())
        largest = LARGEST_GROWTH * length + LARGEST_ADDITION
        request = {
            "template": template,
            "messages": messages,
            "variables": variables,
            "largest": largest,
        }
        if template in self._trusted:
            answer = template_sandbox.answer(request)
        else:
            answer = self._ask(json.dumps(request) + "\n", largest)
        if "error" in answer:
            kind = TemplateFailedError if answer.get("failed") else ModelError
            # A template over a limit does not refuse the system prompt.
            has_system = kind is TemplateFailedError and any(
                message["role"] == "system" for message in messages
            )
            raise _unusable(answer["error"], kind, has_system=has_system)
        return str(answer["text"])

    def _ask(self, line: str, largest: int) -> dict[str, Any]:
        self.start()
        assert self._child is not None and self._child.stdin and self._child.stdout
        self._asking = True
        try:
            if not self._ready:
                self._ready = bool(_read_line(self._child, START_LIMIT, 100))
            _write_line(self._child.stdin, line)
            # JSON writes a character with up to 12.
            answer = _read_line(self._child, RENDER_LIMIT, 12 * largest + 1000)
        except BaseException:  # an unread answer must not be taken for the next one
            _stop(self._child)
            raise
        finally:
            self._asking = False
        if not answer:
            _stop(self._child)
            return {"error": "it needs too much time or memory"}
        return dict(json.loads(answer))


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
    if think is not None:
        check_thinking_switch(tokenizer, chat_template)
    if not template:
        text = "\n\n".join(message["content"] for message in messages)
        return encode_beginning(tokenizer, text, split_special_tokens=True)
    marked = mark_control_tokens(
        [_with_reasoning(message) for message in messages], _control_tokens(tokenizer, template)
    )
    variables = dict(tokenizer.special_tokens_map)
    if think is not None:
        variables[SWITCH] = think
    text = render_whole(
        lambda messages: renderer.render(template, messages, variables),
        marked,
        template=template,
        of=_named(chat_template),
    )
    try:
        encoded = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)
    except ValueError as error:  # a control token cannot be told from text
        raise _unusable(str(error)) from error
    ids = list(encoded["input_ids"])
    if not ids:
        raise ModelError(
            (*_named(chat_template), " writes nothing that the tokenizer knows"),
            ("try another ", Setting("chat_template")),
        )
    return ids


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


def has_thinking_switch(tokenizer: Any, chat_template: str | None = None) -> bool:
    """Whether `encode_chat` accepts `think`.

    Raises:
        ModelError: as for `own_template`.
    """
    return SWITCH in (chat_template or own_template(tokenizer))


def check_thinking_switch(tokenizer: Any, chat_template: str | None = None) -> None:
    """Refuses to turn thinking on or off where the template has no switch for it.

    Raises:
        UsageError: it has none.
        ModelError: as for `own_template`.
    """
    if not has_thinking_switch(tokenizer, chat_template):
        raise UsageError(
            (*_named(chat_template), " has no thinking switch"),
            ("leave ", Setting("think"), " at its default"),
            field="think",
        )


def own_template(tokenizer: Any) -> str:
    """The tokenizer's chat template, or its default one if it has several; empty without one.

    Raises:
        ModelError: it has several, and none is the default.
    """
    try:
        return str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""
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


def _unusable(
    reason: str, kind: type[ModelError] = ModelError, *, has_system: bool = False
) -> ModelError:
    cause = "some templates refuse a system prompt; " if has_system else ""
    return kind(
        f"the chat template cannot render this conversation: {reason}",
        (
            f"{cause}try another ",
            *(Setting("chat_template"), ", or none with d3 generate ", Setting("raw")),
        ),
    )


def _read_line(child: "subprocess.Popen[str]", seconds: float, most: int) -> str:
    """One whole line; empty if it is late or too long, or if the child has ended."""
    assert child.stdout
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    try:
        line = child.stdout.readline(most)
    finally:
        timer.cancel()
    return line if line.endswith("\n") else ""


def _write_line(stdin: IO[str], line: str) -> None:
    try:
        stdin.write(line)
        stdin.flush()
    except OSError:  # the child has ended; reading its answer reports that
        return


def _stop(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream:
            try:
                stream.close()
            except OSError:  # unwritten data no longer matters
                continue
