"""Recorded runs: one drawn again, or two compared. Loads no model and no torch."""

from collections.abc import Mapping
from pathlib import Path

from d3cli.base.errors import UsageError
from d3cli.cli import stdin
from d3cli.cli.output import Output, json_line
from d3cli.cli.profile.destination import Destination, Format
from d3cli.cli.profile.result import deliver, table_width, write_trace

ALLOWED = {"from_", "against", "form", "as_json", "output_file", "debug"}


def check_options(typed: Mapping[str, str]) -> None:
    """Raises UsageError for an option that a recorded run cannot obey.

    Args:
        typed: as in `CommandSettings`.
    """
    for name, spelling in typed.items():
        if name not in ALLOWED:
            raise UsageError(
                f"--from takes no {spelling}: it draws a run as it was recorded",
                f"leave out {spelling}, or leave out --from",
            )


def show_recorded(
    output: Output, destination: Destination, path: Path, against: Path | None
) -> None:
    """Writes the report of a trace, or of two traces side by side.

    Raises:
        TraceError: a file is not a trace that this version reads.
        UsageError: two runs have no report of this form.
        ClosedPipe, WriteError: as for `deliver`.
    """
    from d3cli.profile.trace_file import read_trace

    with stdin.waiting(output, "" if path == Path("-") else str(path)):
        trace = read_trace(path)
    destination.check(output, (path, against))
    if against is None:
        write_trace(output, trace, destination)
        return
    if destination.form not in (Format.table, Format.json):
        raise UsageError(
            f"--against cannot be written as {destination.form}", "use -o table or -o json"
        )
    from d3cli.cli.profile.against import against_json, against_report

    other, names = read_trace(against), (str(path), str(against))

    def render(form: Format) -> str:
        if form is Format.json:
            return json_line(against_json(trace, other))
        return against_report(trace, other, names, table_width(output))

    deliver(output, destination, render)
