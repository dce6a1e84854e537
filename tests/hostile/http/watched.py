"""Runs ``d3 serve`` as its own process does, and writes down what it opens.

    python -m tests.hostile.http.watched SEEN serve --port 0 ...

From its first words on ("listening on"), files that are opened, connections and names that are
looked up, and programs that are started go to the file SEEN, one a line.
"""

import sys
from pathlib import Path
from typing import Any

from tests.impatient import lose_patience

WATCHED = (
    *("open", "os.", "shutil.", "subprocess.", "pty.", "ctypes.dlopen"),
    *("socket.connect", "socket.bind", "socket.send", "socket.get", "urllib.", "ftplib."),
)
HEADER_S, BODY_S, SEND_S = 1.0, 1.5, 2.0


def watch(seen: Path) -> None:
    """Appends the audit events of this process to a file."""
    file = seen.open("a", buffering=1)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(WATCHED):
            file.write(f"{event} {arguments!r}".replace("\n", "\\n") + "\n")

    sys.addaudithook(note)


def main() -> None:
    import d3cli.cli.app
    import d3cli.cli.output

    lose_patience(HEADER_S, BODY_S, SEND_S)
    seen, arguments = Path(sys.argv[1]), sys.argv[2:]
    note = d3cli.cli.output.Output.note

    def noted(output: Any, text: Any) -> None:
        if str(text).startswith("listening on"):
            watch(seen)
        note(output, text)

    d3cli.cli.output.Output.note = noted  # type: ignore[method-assign]
    sys.exit(d3cli.cli.app.run(arguments))


if __name__ == "__main__":
    main()
