"""Renders a conversation so that every message stands in it, or refuses.

A chat template can drop a message without an error. Some read only typed parts
(``[{"type": "text", "text": …}]``) and find none in a string; some know no system prompt, or other
names of roles. Knows nothing of tokenizers, nor of how a template is run.
"""

import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from d3cli.base.errors import ModelError, Setting, Words

TemplateMessage = Mapping[str, Any]
Render = Callable[[Sequence[TemplateMessage]], str]

# A shorter text may stand in a rendering by chance, as a part of a date or of a role's name.
SHORTEST = 5
# A question, its reply and the next question: no template may forget these.
LATEST_TURNS = 3


class TemplateFailedError(ModelError):
    """The template itself failed: it refuses the conversation, or it has a mistake."""


def render_whole(
    render: Render, messages: Sequence[TemplateMessage], *, template: str, of: Words
) -> str:
    """The rendering of a conversation; every message stands in it.

    Messages are strings. Those that are missing from the rendering become typed parts. When the
    messages are found at once, which is nearly always, the template runs once. Otherwise a second
    rendering decides, in which each message has a mark on both sides: a template may trim, escape
    or shorten a text on purpose.

    Args:
        render: runs the template; raises TemplateFailedError if the template fails.
        template: its text.
        of: names the template in an error, such as "this model's chat template".

    Raises:
        TemplateFailedError: the template fails, with strings and with typed parts.
        ModelError: a message, or a part of one, is missing from every rendering.
    """
    probe = _Probe(render, messages)
    missing = set(range(len(messages)))
    failure: TemplateFailedError | None = None
    try:
        text = render(messages)
    except TemplateFailedError as error:
        failure = error
    else:
        if _surely_stand(messages, text, template):
            return text
        try:
            missing = probe.missing()
        except TemplateFailedError:  # it refuses the marks, such as a longer text
            missing = {n for n, one in enumerate(messages) if one["content"].strip() not in text}
        if not missing:
            return text
    for typed in _layouts(messages, missing, failed=failure is not None):
        try:
            still_missing = probe.missing(typed)
            if not still_missing:
                return render(_with_parts(messages, typed))
        except TemplateFailedError:
            continue
        missing = min(missing, still_missing, key=len)
    raise failure or _left_out(messages, missing, of, cut=probe.cut)


def _surely_stand(messages: Sequence[TemplateMessage], rendering: str, template: str) -> bool:
    """Whether all messages stand in a rendering, in their order. False where that is uncertain."""
    at = 0
    for message in messages:
        text = message["content"].strip()
        if not text:
            continue
        if len(text) < SHORTEST or text in template:
            return False
        found = rendering.find(text, at)
        if found < 0:
            return False
        at = found + len(text)
    return True


class _Probe:
    """Renders a conversation with marks around each message, and looks for the marks.

    Attributes:
        cut: the indices of missing messages of which a part stood in a rendering.
    """

    def __init__(self, render: Render, messages: Sequence[TemplateMessage]) -> None:
        self._render = render
        name = secrets.token_hex(4)
        marks = [(f"b{name}b{at}b", f"e{name}e{at}e") for at in range(len(messages))]
        # One search finds the marks of all messages: there may be thousands.
        self._begin, self._end = re.compile(f"b{name}b(\\d+)b"), re.compile(f"e{name}e(\\d+)e")
        self._as_list = re.compile(rf"""['"]text\\*['"]: *\\*['"]b{name}b(\d+)b""")
        self._messages = [
            {**message, "content": f"{begin} {message['content']} {end}"}
            if message["content"].strip()
            else message
            for message, (begin, end) in zip(messages, marks, strict=True)
        ]
        self._system = {at for at, one in enumerate(messages) if one["role"] == "system"}
        self.cut: set[int] = set()

    def missing(self, typed: Collection[int] = ()) -> set[int]:
        """The indices of the messages that a rendering lacks.

        The beginning of a long conversation may be missing if the latest turns are there: some
        templates forget it. The system prompt may be forgotten with it, if it stands before the
        last message alone.

        Args:
            typed: those whose content is typed parts. If the template writes such a list as it is,
                the message is missing.

        Raises:
            TemplateFailedError: the template fails.
        """
        every = range(len(self._messages))
        missing = self._missing(every, typed)
        turns = [at for at in every if at not in self._system]
        latest = {*turns[-LATEST_TURNS:], every[-1]}
        forgotten = missing - self._system
        begins = max(forgotten, default=-1) + 1
        before = {at for at in turns if at < begins and self._messages[at]["content"].strip()}
        if missing & latest or forgotten != before:
            return missing
        if missing & self._system:
            return self._missing([*sorted(self._system), every[-1]], typed)
        return set()

    def _missing(self, indices: Sequence[int], typed: Collection[int]) -> set[int]:
        """The missing ones of a conversation of the messages with these indices."""
        shown = _with_parts(self._messages, typed)
        rendering = self._render([shown[at] for at in indices]).casefold()
        begun, ended, listed = (
            {int(at) for at in mark.findall(rendering)}
            for mark in (self._begin, self._end, self._as_list)
        )
        missing = set()
        for at in indices:
            if not self._messages[at]["content"].strip():
                continue
            stands = [at in begun, at in ended]
            # A template may cut the reasoning at the beginning of a reply, and a long reply.
            enough = any if self._messages[at]["role"] == "assistant" else all
            if not enough(stands) or at in listed:
                missing.add(at)
                if any(stands) and not typed:
                    self.cut.add(at)
        return missing


def _layouts(
    messages: Sequence[TemplateMessage], missing: set[int], *, failed: bool
) -> list[set[int]]:
    """The indices of the messages to render as typed parts, in the order to try."""
    system = {at for at, message in enumerate(messages) if message["role"] == "system"}
    everything = set(range(len(messages)))
    # After a failure it is unknown which messages the template reads as parts.
    wanted = [everything, everything - system, system] if failed else [missing, everything]
    return [typed for n, typed in enumerate(wanted) if typed and typed not in wanted[:n]]


def _with_parts(
    messages: Sequence[TemplateMessage], typed: Collection[int]
) -> list[TemplateMessage]:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if at in typed
        else message
        for at, message in enumerate(messages)
    ]


def _left_out(
    messages: Sequence[TemplateMessage], missing: set[int], of: Words, *, cut: set[int]
) -> ModelError:
    last = len(messages) - 1
    turns = {n for n in range(last) if messages[n]["role"] != "system"}
    at = last if last in missing else min(missing)
    role = messages[at]["role"]
    template = Setting("chat_template")
    hint: Words = ("use another ", template, ", or none with d3 generate ", Setting("raw"))
    if at == last:
        what = "the last message"
    elif role == "system":
        what = "the system prompt"
        hint = ("write it at the beginning of your message, or use another ", template)
    else:
        what = f"message {at + 1} of {len(messages)}, which is the {role}'s"
    subject = (of,) if isinstance(of, str) else tuple(of)
    if turns and last not in missing and turns <= missing:
        return ModelError(
            (*subject, " shows only the last message, and the conversation has more"),
            ("begin a new conversation for each message, or use another ", template),
        )
    return ModelError((*subject, f" leaves out {'a part of ' if at in cut else ''}{what}"), hint)
