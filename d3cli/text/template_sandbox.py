"""A child process that renders the chat templates of untrusted models.

`renderer.Renderer` starts it. It reads one JSON request per line and answers with one line.
A template is a program. transformers' sandbox keeps it away from Python's internals. The limits
below keep it from using up the machine. If it escapes from the sandbox, they also keep it from
writing files, using the network and starting programs.
"""

import json
import os
import sys
from contextlib import suppress
from importlib.util import find_spec, module_from_spec
from typing import Any


def leave_empty(*packages: str) -> None:
    """Makes packages whose modules can be imported, but whose own code does not run."""
    for name in packages:
        spec = find_spec(name)
        assert spec is not None
        sys.modules[name] = module_from_spec(spec)


if __name__ == "__main__":
    # The code of these packages would take three quarters of the time in which the child starts.
    # The one module that it needs does without. It is tested against the pinned version.
    leave_empty("transformers", "transformers.utils")

from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

MEMORY = 512 << 20  # bytes beyond what the process uses at its start
SECONDS = 5  # of processor time for one rendering
# Python's default recursion limit is too high: some passes of Jinja overflow C's stack before.
DEEPEST = 500
FORBIDDEN = ("socket.", "subprocess.", "os.", "shutil.", "ctypes.", "pty.", "signal.")
ALLOWED = ("os.listdir", "os.scandir", "os.walk")  # imports list directories


def main() -> None:
    """Answers requests until stdin ends."""
    limit()
    _write({"ready": True})
    for line in sys.stdin:
        _allow_time()
        _write(answer(json.loads(line)))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The rendered text, or an error: "failed" where the template failed within its limits."""
    try:
        [text], _ = render_jinja_template(
            [request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request.get("variables", {}),
        )
        if len(text) > request.get("largest", len(text)):
            return {"error": "its output is many times larger than the conversation"}
        text.encode()  # raises if there is half a surrogate pair
    except MemoryError:
        return {"error": "it needs too much memory"}
    except UnicodeEncodeError:
        return {"error": "it writes half a character"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:
        return {"error": describe(error), "failed": True}
    return {"text": text}


def describe(error: Exception) -> str:
    """The message of an error that the template raises; other errors with their class."""
    from jinja2 import TemplateError

    text = str(error)[:500]
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def limit() -> None:
    """Limits memory, writing and new processes, as far as the system supports it."""
    sys.setrecursionlimit(DEEPEST)
    _limit_system()
    sys.addaudithook(_refuse)  # a hook cannot be removed


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        _, mode, flags = arguments
        writes = set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR)
    else:
        writes = event.startswith(FORBIDDEN) and event not in ALLOWED
    if writes:
        raise PermissionError(f"a chat template must not do this: {event}")


def _limit_system() -> None:
    try:
        import resource
    except ImportError:  # Windows: only the parent's time limit remains
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
    """Limits processor time of the next rendering, in case the parent is gone."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
