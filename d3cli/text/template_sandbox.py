"""The process that renders chat templates which come with a model from anywhere.

Started by `chat_template.Renderer`; reads one JSON request a line and answers each with one line.
A template is a program. transformers' sandbox keeps it from Python's inside; the limits below keep
it from eating the machine; and should it get out of the sandbox, from writing, the network and
other programs.
"""

import json
import os
import sys
from contextlib import suppress
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

# Bytes beyond what the process took when it began; seconds of processor time for one rendering.
MEMORY, SECONDS = 512 << 20, 5
# Python's own recursion limit is not reached before C's stack ends in some of Jinja's passes.
DEEPEST = 500
FORBIDDEN = ("socket.", "subprocess.", "os.", "shutil.", "ctypes.", "pty.", "signal.")
ALLOWED = ("os.listdir", "os.scandir", "os.walk")  # imports look into directories


def main() -> None:
    """Answers until stdin ends."""
    limit()
    _write({"ready": True})
    for line in sys.stdin:
        _allow_time()
        _write(answer(json.loads(line)))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The rendered text, or why there is none."""
    try:
        [text], _ = render_jinja_template(
            [request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request.get("variables", {}),
        )
        if len(text) > request.get("largest", len(text)):
            return {"error": "its text is many times larger than the conversation"}
        text.encode()  # half a surrogate pair is no text
    except MemoryError:
        return {"error": "it takes more memory than a chat template may"}
    except UnicodeEncodeError:
        return {"error": "it writes half a character"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:
        return {"error": describe(error)}
    return {"text": text}


def describe(error: Exception) -> str:
    """A template's own complaint as it is; any other error with its kind."""
    from jinja2 import TemplateError

    text = str(error)[:500]
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def limit() -> None:
    """Limits memory, writing and new processes, as far as the system can."""
    sys.setrecursionlimit(DEEPEST)
    _limit_system()
    sys.addaudithook(_refuse)  # there is no way to take it away again


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        _, mode, flags = arguments
        writes = set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR)
    else:
        writes = event.startswith(FORBIDDEN) and event not in ALLOWED
    if writes:
        raise PermissionError(f"a chat template may not do this: {event}")


def _limit_system() -> None:
    try:
        import resource
    except ImportError:  # Windows: the time limit, which the parent keeps, is all there is
        return
    import psutil

    most = psutil.Process().memory_info().vms + MEMORY
    for kind, limit in (
        (resource.RLIMIT_AS, most),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # macOS cannot limit all of these
            resource.setrlimit(kind, (limit, limit))


def _allow_time() -> None:
    """Processor time for the next rendering, beyond what was used: in case the parent is gone."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
