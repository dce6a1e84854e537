"""What must hold of every hostile input: one clear line, nothing run, nothing opened elsewhere."""

import re
from pathlib import Path

from tests.forks import Ended

SECRET = '{"secret": "of no concern to a stranger"}'
LONGEST_LINE = 700  # characters of an error; a path takes some
EVENTS = ("socket.", "open", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
MOST_NOTES = 5  # lines besides the error and its hint: which model runs, and what to know of it


def make_outside(folder: Path) -> Path:
    """A directory that a hostile input must leave alone, beside that of the input."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text(SECRET)
    return outside


def check_inside(ended: Ended, outside: Path) -> None:
    """Fails if code of the input ran, or a socket or a file elsewhere was opened."""
    assert not (outside / "sentinel").exists()
    assert not [event for event in ended.seen if event.startswith("socket.")]
    assert not [event for event in ended.seen if str(outside) in event]
    programs = [event for event in ended.seen if not event.startswith(("socket.", "open"))]
    assert all("d3cli.text.template_sandbox" in event for event in programs), programs
    assert "Traceback" not in ended.err, ended.err


def check_one_clear_line(ended: Ended, control: Ended, codes: tuple[int, ...] = (1, 2)) -> None:
    """Fails unless a command ended with one error and a hint, within twice the control's memory."""
    assert ended.most_resident < 2 * control.most_resident, ended.most_resident
    assert ended.code in codes, (ended.code, ended.err)
    assert not ended.out, ended.out[:300]
    assert "internal error" not in ended.err, ended.err
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, ended.err
    assert 20 < len(errors[0]) < LONGEST_LINE
    assert re.search("^hint: .", ended.err, re.MULTILINE), ended.err
    assert len(lines) <= MOST_NOTES + 2, ended.err
    assert all(line.isprintable() for line in lines), ended.err
