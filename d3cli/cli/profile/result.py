"""The result of a profile: rendered in one of four forms, then written to stdout or a file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from d3cli.base.errors import UsageError
from d3cli.cli.output import Output, WriteError, json_line
from d3cli.cli.profile.destination import SUFFIXES, Destination, Format

if TYPE_CHECKING:
    from d3cli.profile.trace import Trace

PIPE_WIDTH = 160  # columns of a table that is not written to a terminal


def choose_destination(
    output: Output, form: Format | None, as_json: bool, path: Path | None
) -> Destination:
    """The form and the file that the output options ask for.

    Raises:
        UsageError: two options ask for different forms, or HTML would go to a terminal.
    """
    if as_json and form not in (None, Format.json):
        raise UsageError(f"--json and -o {form} exclude each other", "use only one of them")
    if as_json:
        form = Format.json
    if form is None:
        form = Format.table if path is None else SUFFIXES.get(path.suffix.lower(), Format.table)
    if form is Format.html and path is None and output.stdout_width:
        raise UsageError(
            "a terminal cannot show HTML", "write it to a file: --output-file report.html"
        )
    return Destination(form, path)


def write_trace(output: Output, trace: "Trace", destination: Destination) -> None:
    """Writes a trace in the form that was asked for.

    Raises:
        ClosedPipe, WriteError: as for `deliver`.
    """
    deliver(output, destination, lambda form: _render(trace, form, table_width(output)))


def deliver(output: Output, destination: Destination, render: Callable[[Format], str]) -> None:
    """Renders the result and writes it.

    A terminal also shows a table of what goes to a file.

    Raises:
        ClosedPipe: the reader of stdout is gone.
        WriteError: the result could not be written. Where a file failed, it went to stdout.
    """
    text = render(destination.form)
    if destination.path is None:
        _show(output, destination.form, text)
        return
    try:
        destination.write(output, text)
    except WriteError:  # do not lose the measurement
        if destination.form is Format.html and output.stdout_width:
            text = render(Format.table)
        _show(output, destination.form, text)
        raise
    if output.stdout_width:
        output.write(render(Format.table))


def table_width(output: Output) -> int:
    """Columns that a table may use."""
    return output.stdout_width or PIPE_WIDTH


def _show(output: Output, form: Format, text: str) -> None:
    if form is Format.html and not output.stdout_width:
        output.document(text)
    else:
        output.write(text)


def _render(trace: "Trace", form: Format, width: int) -> str:
    if form is Format.json:
        from d3cli.profile.summary import with_figures

        return json_line(with_figures(trace))
    if form is Format.html:
        from d3cli.profile.html.page import html_report

        return html_report(trace)
    from d3cli.cli.profile.tables import csv_text, report

    return csv_text(trace) if form is Format.csv else report(trace, width)
