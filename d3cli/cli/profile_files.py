"""Where a profile goes: stdout, or a file that is written whole or not at all."""

import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from d3cli.cli.output import Output, WriteError
from d3cli.config import replace_file


class Format(StrEnum):
    """How the result is written."""

    table = "table"
    json = "json"
    csv = "csv"
    html = "html"


SUFFIXES = {".json": Format.json, ".csv": Format.csv, ".html": Format.html, ".htm": Format.html}


@dataclass(frozen=True, slots=True)
class Destination:
    """A form, and a file; without one, stdout."""

    form: Format
    path: Path | None

    def check(self) -> None:
        """Makes sure, before a long run, that the file can be written.

        Raises:
            WriteError: it cannot.
        """
        if self.path is None:
            return
        try:
            path = self.path.expanduser()
            if path.is_dir():
                raise WriteError(f"{self.path} is a directory", "give a file's name in it")
            if not path.exists() or path.is_file():
                with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
                    pass
        except (OSError, RuntimeError, ValueError) as error:  # no such home, a NUL in the name
            raise self._problem(error) from error

    def write(self, output: Output, text: str) -> None:
        """Writes the file; where that fails, the text goes to stdout, so that it is not lost.

        Raises:
            WriteError: it could not be written.
        """
        assert self.path is not None
        try:
            path = self.path.expanduser()
            if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
                path.write_text(text, encoding="utf-8")
            else:
                replace_file(path.resolve(), text)  # what a link points to, not the link
        except OSError as error:
            output.write(text)
            raise self._problem(error) from error
        output.note(f"wrote {self.path}")

    def _problem(self, error: Exception) -> WriteError:
        reason = getattr(error, "strerror", None) or error
        return WriteError(f"{self.path} cannot be written: {reason}", "give another --output-file")
