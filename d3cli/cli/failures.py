"""What ends a command early, as a line on stderr and an exit code."""

import os
import sys
import traceback
from contextlib import suppress
from typing import Any

import typer

from d3cli.base.errors import D3Error, Words, is_panic
from d3cli.base.inert import inert
from d3cli.base.launch import LOSS, RanksLost
from d3cli.cli import removed, signals
from d3cli.cli.command_line import note_origin
from d3cli.cli.output import ClosedPipe, Output, WriteError
from d3cli.cli.signals import Stopped

INTERRUPTED = 130
# How torch's allocator, the loader of libraries and oneDNN say it.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "failed to map segment",
    "could not create a primitive",
)


def report(output: Output, error: BaseException) -> int:
    """Shows the exception that is being handled, with its hint, and returns the exit code.

    Raises:
        BaseException: the same, if it is neither an error nor an interruption.
    """
    if isinstance(error, ClosedPipe):
        return 0
    if isinstance(error, RanksLost):
        if LOSS.tell():
            output.error(error.message, error.hint)
        return 1
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, Stopped):
        return error.exit_code
    if isinstance(error, (WriteError, OSError)) and (stopped_by := signals.arrived()):
        return 128 + stopped_by[0]  # the terminal has gone, so writing to it failed
    if not isinstance(error, Exception) and not is_panic(error):
        raise error
    if os.environ.get("D3_DEBUG", "").lower() in ("1", "true", "yes", "on"):
        with suppress(OSError):  # stderr itself may be what failed
            sys.stderr.write(inert(traceback.format_exc()))
    if isinstance(error, D3Error):
        message, hint = error.told(output.spell)
        output.error(message, "; ".join(filter(None, (hint, *_notes(error)))))
        return error.exit_code
    output.error(*_describe(error))
    return error.exit_code if isinstance(error, typer.TyperException) else 1


def _describe(error: BaseException) -> tuple[Words, Words]:
    """Message and hint for an error that is not a D3Error."""
    if isinstance(error, OSError):
        return f"the system refused: {error}", "check the disk and the permissions"
    option = getattr(error, "option_name", "")  # of Typer's error about an unknown option
    if option and (instead := removed.replacement(option)):
        return f"{option} was removed", instead
    if isinstance(error, typer.TyperException):  # unknown options, wrong types
        ctx, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
        if ctx is not None and parameter is not None:
            note_origin(error, ctx, parameter)
        hint = "; ".join(("see d3 --help, or --help after a command", *_notes(error)))
        return _own_words(error, parameter), hint
    if is_panic(error):
        return (
            f"the model's tokenizer failed on this text: {str(error)[:200]}",
            "try another text; the model's files may be damaged",
        )
    if _is_out_of_memory(error):
        return (
            f"out of memory: {str(error) or type(error).__name__}",
            "use --quantization int4, or bnb-4bit on a GPU; shorter prompts; or a smaller model",
        )
    return (
        f"internal error: {type(error).__name__}: {error}",
        "run it again with --debug, and report what it shows",
    )


def _own_words(error: typer.TyperException, parameter: Any) -> str:
    """Typer's sentence; for a number, d3's own instead of that of the library that parses it."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    problems: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()  # pydantic's
    if not problems:
        return message
    kind, given = problems[0]["type"], str(problems[0]["input"])[:40]
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if kind in ("int_parsing", "int_from_float", "int_parsing_size"):
        words = f"{given!r} is not a whole number"
    elif kind in ("float_parsing", "finite_number"):
        words = f"{given!r} is not a number"
    elif kind not in ("greater_than_equal", "less_than_equal"):
        return message
    elif least is not None and most is not None:
        words = f"{given} is not from {least} to {most}"
    else:
        words = f"{given} is not at {f'least {least}' if most is None else f'most {most}'}"
    return message.replace(problems[0]["msg"], words)


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's type is compared by name, because importing torch is slow.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in OUT_OF_MEMORY)
