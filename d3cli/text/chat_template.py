"""From messages to token ids: renders a model's chat template, in bounds.

A chat template is a program that comes with a model. Those that are known by name run here; all
others run in a child process with limits (`template_child`). Knows a tokenizer; knows nothing of
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

from d3cli.base.errors import ModelError, PromptError, UsageError
from d3cli.text import template_sandbox
from d3cli.text.reasoning import split_reasoning
from d3cli.text.tokens import check_length

Message = dict[str, str]

# Real templates have 1 to 60 kB. A rendered one repeats the conversation once, and JSON in it may
# take more room than the text did.
LARGEST_TEMPLATE = 1 << 20
LARGEST_GROWTH, LARGEST_ADDITION = 8, 1 << 20
# Seconds for the child to start (imports, on a cold disk), and to render once.
START_LIMIT, RENDER_LIMIT = 60.0, 5.0


class Renderer:
    """Renders chat templates; those that are not trusted in a child process, kept for the next.

    Args:
        trusted: templates that may run in this process.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted = frozenset(trusted)
        self._child: subprocess.Popen[str] | None = None
        self._ready = False
        self._asking = False

    def interrupt(self) -> None:
        """Ends a rendering that goes on in the child, from another thread: it fails then."""
        if self._asking and self._child is not None:
            self._child.kill()

    def start(self) -> None:
        """Begins to start the child, so that it is ready when the first template comes."""
        if self._child is None or self._child.poll() is not None:
            self._ready = False
            self._child = subprocess.Popen(  # noqa: S603 - no shell, nothing from outside
                # -P: a module that lies in the working directory is not ours.
                [sys.executable, "-P", "-m", template_sandbox.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for this process
            )
            weakref.finalize(self, _stop, self._child)

    def render(
        self, template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]
    ) -> str:
        """The text of a conversation, up to where the model's turn begins.

        Raises:
            ModelError: the template fails, or goes beyond a limit.
        """
        if len(template) > LARGEST_TEMPLATE:
            raise _unusable(
                f"it has {len(template):,} characters, and may have {LARGEST_TEMPLATE:,}"
            )
        length = len(template) + sum(len(text) for one in messages for text in one.values())
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
            raise _unusable(answer["error"])
        return str(answer["text"])

    def _ask(self, line: str, largest: int) -> dict[str, Any]:
        self.start()
        assert self._child is not None and self._child.stdin and self._child.stdout
        self._asking = True
        try:
            if not self._ready:
                self._ready = bool(_read_line(self._child, START_LIMIT, 100))
            _write_line(self._child.stdin, line)
            # JSON escapes a character in up to 12.
            answer = _read_line(self._child, RENDER_LIMIT, 12 * largest + 1000)
        except BaseException:  # interrupted: an answer that nobody has read must not meet the next
            _stop(self._child)
            raise
        finally:
            self._asking = False
        if not answer:
            _stop(self._child)
            return {"error": "it takes more time or memory than a chat template may"}
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
    """Renders a conversation with the model's chat template, ready for the model's turn.

    Control tokens written inside a message stay text. The reasoning in an earlier reply is handed
    to the template apart from the answer, as ``reasoning_content``: most drop it. A model without
    a template reads the messages as they are, with a blank line between.

    Args:
        context: the model's context length. A conversation far beyond it is refused before it is
            rendered.
        chat_template: a Jinja template to use instead of the tokenizer's own.
        think: turns a reasoning model's thinking on or off; None leaves its default.

    Raises:
        PromptError: the last message is empty, or one is no message.
        ContextFullError: the conversation is more than twice as long as the context.
        UsageError: `think` was given, but the template has no such switch.
        ModelError: the template refuses these messages, is broken, or goes beyond a limit.
    """
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
    if context is not None:
        check_length(tokenizer, whole, context)
    template = chat_template or own_template(tokenizer)
    if think is not None and "enable_thinking" not in template:
        raise UsageError("this model's chat template has no thinking switch", "leave out --think")
    if not template:
        text = "\n\n".join(message["content"] for message in messages)
        return list(tokenizer(text, split_special_tokens=True)["input_ids"])
    marked = mark_control_tokens(
        [_with_reasoning(message) for message in messages], _control_tokens(tokenizer, template)
    )
    variables = dict(tokenizer.special_tokens_map)
    if think is not None:
        variables["enable_thinking"] = think
    text = renderer.render(template, marked, variables)
    try:
        encoded = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)
    except ValueError as error:  # a control token that cannot be told from text
        raise _unusable(str(error)) from error
    return list(encoded["input_ids"])


def own_template(tokenizer: Any) -> str:
    """The tokenizer's own chat template; it may hold several by name. Empty where it has none.

    Raises:
        ModelError: it holds several, and none is the default.
    """
    try:
        return str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""
    except ValueError as error:
        raise ModelError(
            "this model has several chat templates and no default one",
            "choose one of its files: --chat-template FILE",
        ) from error


def _with_reasoning(message: Message) -> Message:
    if message["role"] != "assistant":
        return dict(message)
    reasoning, answer = split_reasoning(message["content"])
    return {**message, "content": answer} | ({"reasoning_content": reasoning} if reasoning else {})


def _control_tokens(tokenizer: Any, template: str) -> "re.Pattern[str]":
    """Matches the added tokens that must stay text inside a message.

    The special ones; those that the template writes; and those of a control token's form, since a
    template may build them from pieces (``'<|' + role + '|>'``, Phi-4-mini), where transformers'
    own search does not see them.
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
    # The longest first: a token takes priority over the tokens that it contains.
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _unusable(reason: str) -> ModelError:
    return ModelError(
        f"the chat template cannot render this conversation: {reason}",
        "try another --chat-template; some refuse a system prompt; d3 generate --raw uses none",
    )


def _read_line(child: "subprocess.Popen[str]", seconds: float, most: int) -> str:
    """One whole line; empty where it does not come in time, is too long, or the child has ended."""
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
    except OSError:  # it has ended; reading its answer says so
        return


def _stop(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream:
            try:
                stream.close()
            except OSError:  # what could not be written to it is of no interest any more
                continue
