"""Tells a reasoning model's thinking from its answer, by the text alone.

Models think at the beginning of a reply, between tags. Some chat templates end the prompt with the
opening tag. Tags that are special tokens stay in the text; see `control_tokens`.
"""

import re
from collections.abc import Sequence

# Tags that do not follow the rule of `closing_tag`.
TAGS = (
    ("<reasoning>", "</reasoning>"),
    ("◁think▷", "◁/think▷"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
    ("[unused16]", "[unused17]"),
    # gpt-oss writes a reply in parts, each with a header. The answer is the "final" part.
    ("<|channel|>", "final<|message|>"),
)
_TAG = re.compile(r"(<\|?|\[)([A-Za-z][\w:.-]{0,60})(\|?>|\])", re.ASCII)
_MAY_BE_TAG = re.compile(r"(<\|?|\[)([A-Za-z][\w:.-]{0,60})?\|?", re.ASCII)
_BRACKETS = {"<": ">", "<|": "|>", "[": "]"}
_THINKING = {"think", "thinking", "thought", "thoughts"}
_NOT_OPENING = {"no", "end", "off"}
# The header of a part: "assistant<|channel|>analysis<|message|>". That of the answer is cut.
HEADER = re.compile(r"(assistant)?<\|channel\|>([^<]*<\|message\|>)?|^\w+<\|message\|>")


def closing_tag(opening: str) -> str:
    """The tag that closes reasoning; empty if the text is not an opening tag.

    A name with the word "think" or "thought" in brackets opens reasoning: <think>, <seed:think>,
    [THINK], <|begin_of_thought|>. The same name closes it, with a slash before it, or with "end" in
    place of "begin" or "start".
    """
    if known := dict(TAGS).get(opening, ""):
        return known
    found = _TAG.fullmatch(opening)
    if not found or _BRACKETS[found[1]] != found[3]:
        return ""
    name = found[2]
    words = set(re.split(r"[\W_]", name.lower()))
    if not words & _THINKING or words & _NOT_OPENING or (found[1] == "[" and not name.isupper()):
        return ""
    begin = re.search("begin|start", name, re.IGNORECASE)
    if not begin:
        return f"{found[1]}/{name}{found[3]}"
    end = "END" if begin[0].isupper() else "end"
    return f"{found[1]}{name[: begin.start()]}{end}{name[begin.end() :]}{found[3]}"


def opening_tag(text: str) -> str:
    """The opening tag at the end of a rendered prompt; empty if there is none."""
    text = text.rstrip()
    if known := next((start for start, _ in TAGS if text.endswith(start)), ""):
        return known
    last = [found[0] for found in _TAG.finditer(text[-80:]) if text.endswith(found[0])]
    return last[0] if last and closing_tag(last[0]) else ""


def _tag_at_start(text: str) -> str:
    """The opening tag that a text begins with; empty if there is none."""
    if known := next((start for start, _ in TAGS if text.startswith(start)), ""):
        return known
    found = _TAG.match(text)
    return found[0] if found and closing_tag(found[0]) else ""


def _may_become_tag(text: str) -> bool:
    """Whether a text may be the beginning of an opening tag."""
    known = any(start.startswith(text) for start, _ in TAGS)
    return known or bool(_MAY_BE_TAG.fullmatch(text))


def split_reasoning(text: str) -> tuple[str, str]:
    """A reply's reasoning and its answer, without tags. Reasoning without an end takes it all."""
    splitter = ReasoningSplitter()
    parts = [*splitter.push(text), *splitter.flush()]
    thought = "".join(part for part, thinking in parts if thinking).strip()
    answer = "".join(part for part, thinking in parts if not thinking)
    if start := _tag_at_start(thought):
        thought = thought.removeprefix(start).removesuffix(closing_tag(start))
        return HEADER.sub("\n", thought).strip(), answer.lstrip("\n")
    return "", answer


def count_thinking(pieces: Sequence[str], inside: str = "") -> int:
    """How many of a reply's pieces are reasoning, including the piece that closes it.

    Args:
        inside: the opening tag at the end of the prompt.
    """
    splitter = ReasoningSplitter(inside)
    for number, piece in enumerate(pieces, start=1):
        parts = splitter.push(piece)
        if splitter.is_answering:
            return number if any(thinking for _, thinking in parts) else 0
    return len(pieces) if splitter.is_thinking else 0


class ReasoningSplitter:
    """Tells reasoning from answer while a reply arrives, across chunk boundaries.

    Args:
        inside: the opening tag at the end of the prompt, if the reply begins within reasoning.
    """

    def __init__(self, inside: str = "") -> None:
        self._end = closing_tag(inside)
        self._held = ""
        self._at_start = not inside

    @property
    def is_thinking(self) -> bool:
        """Whether the reply is certainly within its reasoning."""
        return bool(self._end)

    @property
    def is_answering(self) -> bool:
        """Whether the reply is certainly past its reasoning, or has none."""
        return not self._end and not self._at_start

    def push(self, text: str) -> list[tuple[str, bool]]:
        """The parts of text that are certain now. True marks reasoning, which includes its tags."""
        self._held += text
        if self._at_start and not self._decide_start():
            return []
        if not self._end:
            return self._take(len(self._held), thinking=False)
        end = self._held.find(self._end)
        if end < 0:  # the text may end with a part of the closing tag
            open_ends = (n for n in range(len(self._end) - 1, 0, -1))
            keep = next((n for n in open_ends if self._held.endswith(self._end[:n])), 0)
            return self._take(len(self._held) - keep, thinking=True)
        parts = self._take(end + len(self._end), thinking=True)
        self._end = ""
        return parts + self._take(len(self._held), thinking=False)

    def flush(self) -> list[tuple[str, bool]]:
        """The text that was held back, at the end of the stream."""
        return self._take(len(self._held), thinking=bool(self._end))

    def _decide_start(self) -> bool:
        """Decides whether the reply begins with a tag; False while that is uncertain."""
        begun = self._held.lstrip()
        start = _tag_at_start(begun)
        self._end = closing_tag(start)
        self._at_start = not start and _may_become_tag(begun)
        return not self._at_start

    def _take(self, length: int, *, thinking: bool) -> list[tuple[str, bool]]:
        taken, self._held = self._held[:length], self._held[length:]
        return [(taken, thinking)] if taken else []


class PartsStream:
    """Tells reasoning and answer apart while a reply arrives, without tags.

    All answers that it returns, joined, are the answer of `split_reasoning`; all reasoning is its
    reasoning, but for white space at the ends, and the headers of gpt-oss' parts, which stay.

    Args:
        inside: the opening tag at the end of the prompt, if the reply begins within reasoning.
    """

    def __init__(self, inside: str = "") -> None:
        self._splitter = ReasoningSplitter(inside)
        self._opening = inside
        self._has_begun = bool(inside)
        self._after_reasoning = bool(inside)  # and before the answer's first character

    def push(self, text: str) -> tuple[str, str]:
        """The parts of reasoning and of answer that are certain now."""
        return self._told(self._splitter.push(text))

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the stream."""
        return self._told(self._splitter.flush())

    def _told(self, parts: Sequence[tuple[str, bool]]) -> tuple[str, str]:
        reasoning = answer = ""
        for part, thinking in parts:
            if thinking:
                reasoning += self._without_tags(part)
                continue
            if self._after_reasoning:
                part = part.lstrip("\n")
                self._after_reasoning = not part
            answer += part
        return reasoning, answer

    def _without_tags(self, part: str) -> str:
        self._after_reasoning = True
        if not self._has_begun:  # the first part has the whole opening tag
            part = part.lstrip()
            self._opening = _tag_at_start(part)
            part = part.removeprefix(self._opening)
            self._has_begun = True
        return part.removesuffix(closing_tag(self._opening))


class AnswerStream:
    """Takes the reasoning out of a reply while it arrives, across chunk boundaries.

    All that it returns, joined, is the answer of `split_reasoning`.

    Args:
        inside: the opening tag at the end of the prompt, if the reply begins within reasoning.
    """

    def __init__(self, inside: str = "") -> None:
        self._parts = PartsStream(inside)

    def push(self, text: str) -> str:
        """The part of the answer that is certain now."""
        return self._parts.push(text)[1]

    def flush(self) -> str:
        """The text that was held back, at the end of the stream."""
        return self._parts.flush()[1]
