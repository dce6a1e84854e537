"""Renders chat templates within limits: trusted ones in this process, others in a child process.

A chat template is a program that comes with a model. The child is `template_sandbox`. Knows nothing
of tokens.
"""

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from d3cli.base.errors import ModelError, Setting
from d3cli.text import template_sandbox
from d3cli.text.whole_rendering import TemplateFailedError, TemplateMessage

LARGEST_TEMPLATE = 1 << 20  # characters; real templates have 1,000 to 60,000
# The output may have 8 times the characters of conversation and template (text grows when it is
# written as JSON), and a million more.
LARGEST_GROWTH, LARGEST_ADDITION = 8, 1 << 20
# Seconds by the clock for the child to start, with its imports from a cold disk, and to render
# once. The child limits its own processor time; on a busy machine a rendering waits for its turn.
START_LIMIT, RENDER_LIMIT = 60.0, 30.0


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
            raise unusable(
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
            raise unusable(answer["error"], kind, has_system=has_system)
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


def unusable(
    reason: str, kind: type[ModelError] = ModelError, *, has_system: bool = False
) -> ModelError:
    """The error for a template that cannot render a conversation."""
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
