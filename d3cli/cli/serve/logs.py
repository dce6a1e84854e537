"""What the server logs, on stderr: never what clients send, nor keys."""

import asyncio
import logging
import os
import traceback

from d3cli.base.inert import inert
from d3cli.cli.output import Output
from d3cli.serve.guard import StuckError


class _Notes(logging.Handler):
    """Writes records as notes; a traceback only with ``--debug``."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().rstrip().splitlines() or [""]
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError | StuckError):
            return  # a client had not taken its reply in time, or when the server ended
        if error is not None:
            text = [f"internal error: {type(error).__name__}"]
            if os.environ.get("D3_DEBUG"):
                text += traceback.format_exception(error)
        self._output.note(inert("\n".join(text)))


def log_to(output: Output) -> None:
    """Sends the records of d3's server, uvicorn and asyncio to a command's stderr."""
    for name, level in (
        ("d3cli.serve", logging.INFO),
        ("uvicorn.error", logging.ERROR),  # its warnings are of requests that d3 refuses
        ("asyncio", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers[:] = [_Notes(output)]
        logger.propagate = False
