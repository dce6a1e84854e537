"""The options of ``d3 generate`` for many prompts."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from d3cli.base.errors import UsageError

BATCH = "Many prompts"
MOST_ROWS = 16  # as many tokens as one pass of a decoder reads


def parse_size(value: str) -> int | None:
    """A batch size as typed: a number, or "auto", which is None.

    Raises:
        typer.BadParameter: it is neither.
    """
    if value == "auto":
        return None
    if value.isascii() and value.isdigit() and 1 <= int(value) <= MOST_ROWS:
        return int(value)
    raise typer.BadParameter(f'"{value}" is neither auto nor a number from 1 to {MOST_ROWS}')


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCommandOptions:
    """Many prompts in one run."""

    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            rich_help_panel=BATCH,
            help="Answer each row of a file of JSON lines: an object with `prompt` or `messages`, "
            "and perhaps `id`, `system`, `max_tokens`, `seed`. Prints one JSON object a row.",
        ),
    ] = None
    output_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=BATCH,
            help="With --input: write the results to this file. The same command completes a file "
            "that it has begun.",
        ),
    ] = None
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            callback=lambda value: (parse_size(value), value)[1],
            rich_help_panel=BATCH,
            help=f"With --input: how many replies are written together, 1 to {MOST_ROWS}. auto: as "
            "many as are fastest here and fit into memory.",
        ),
    ] = "auto"

    @property
    def size(self) -> int | None:
        """Rows that are written together; None for as many as are fastest."""
        return parse_size(self.batch_size)

    def check(self, typed: Container[str]) -> bool:
        """Whether there is a file of prompts.

        Raises:
            UsageError: there is none, but an option needs it.
        """
        if self.input_file is not None:
            return True
        for name, flag, hint in (
            ("output_file", "--output-file", "one reply goes to stdout: redirect it with >"),
            ("batch_size", "--batch-size", "leave it out, or give the prompts with --input FILE"),
        ):
            if name in typed:
                raise UsageError(f"{flag} belongs to --input", hint)
        return False
