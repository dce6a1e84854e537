"""Where a profile is written: to stdout, or to a file as a whole."""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from d3cli.base.atomic_files import replace_file
from d3cli.base.errors import UsageError
from d3cli.cli.output import Output, WriteError
from d3cli.cli.output_file import check_writable, is_one_of, target_of, unwritable


class Format(StrEnum):
    """The form of the result."""

    table = "table"
    json = "json"
    csv = "csv"
    html = "html"


ANOTHER = "give another --output-file"
SUFFIXES = {".json": Format.json, ".csv": Format.csv, ".html": Format.html, ".htm": Format.html}


@dataclass(frozen=True, slots=True)
class Destination:
    """A form, and a file. Without a file the result goes to stdout."""

    form: Format
    path: Path | None

    def check(self, output: Output, inputs: Iterable[Path | None]) -> None:
        """Checks, before a long run, that the result can be written.

        Args:
            inputs: files that are read, which the result must not replace.

        Raises:
            UsageError: the file cannot be written, or is one of the inputs.
            WriteError: stdout is closed, or the disk is full or broken.
        """
        if self.path is None:
            output.check_stdout()
            return
        try:
            path = self._target()
            if path.is_dir():
                raise UsageError(f"{self.path} is a directory", "give the name of a file in it")
            if is_one_of(path, inputs):
                raise UsageError(
                    f"{self.path} is an input, so the result cannot replace it", ANOTHER
                )
            is_regular = not path.exists() or path.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # no such home, a NUL in the name
            raise unwritable(self.path, error, ANOTHER) from error
        if is_regular:
            check_writable(self.path, path, ANOTHER)

    def write(self, output: Output, text: str) -> None:
        """Writes the file.

        A new file has mode 0600, since it holds a prompt. An existing file keeps its mode.

        Raises:
            WriteError: it could not be written.
        """
        assert self.path is not None
        try:
            path = self._target()
            if path.exists() and not path.is_file():
                _write_into(path, text)
            else:
                mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
                replace_file(path, text)
                path.chmod(mode)
        except UsageError as error:  # what `check` saw has changed
            raise WriteError(error.message, error.hint) from error
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WriteError(f"{self.path} cannot be written: {reason}", ANOTHER) from error
        output.note(f"wrote {self.path}")

    def _target(self) -> Path:
        """The file that a link points to. A pipe keeps its link, which may be its only name."""
        assert self.path is not None
        path = self.path.expanduser()
        return path if path.is_fifo() else target_of(path, ANOTHER)[0]


def _write_into(path: Path, text: str) -> None:
    """Writes into a device or a pipe, which cannot be replaced."""
    flags = os.O_WRONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe without a reader is an error
    with os.fdopen(os.open(path, flags), "w", encoding="utf-8") as file:
        os.set_blocking(file.fileno(), True)
        file.write(text)
