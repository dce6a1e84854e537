"""Shell completion of model names.

It runs at each Tab, so it looks only at names and imports nothing heavy. Errors cannot be shown, so
they only make the list shorter.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from d3cli.base.errors import D3Error
from d3cli.base.settings import BUILTIN, PATH_STARTS, aliases


def complete_model(incomplete: str) -> list[str]:
    """The aliases, cached hub models and directories whose names begin with `incomplete`."""
    found: list[str] = []
    if not incomplete.startswith(PATH_STARTS):
        with suppress(D3Error):  # a damaged config file
            found += sorted(name for name in (BUILTIN, *aliases()) if name.startswith(incomplete))
        with suppress(OSError):
            found += sorted(name for name in _in_cache() if name.startswith(incomplete))
    with suppress(OSError, RuntimeError):
        found += sorted(_directories(incomplete))
    return found


def _in_cache() -> Iterator[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in Path(HF_HUB_CACHE).glob("models--*--*"):
        yield "/".join(path.name.removeprefix("models--").split("--", 1))


def _directories(incomplete: str) -> Iterator[str]:
    """Directories of models. For a path also other directories, with a slash at the end."""
    before, slash, _ = incomplete.rpartition("/")
    folder = Path(before + slash).expanduser() if slash else Path()
    for path in folder.iterdir():
        name = before + slash + path.name
        hidden = path.name.startswith(".")
        if name.startswith(incomplete) and path.is_dir() and not hidden:
            is_model = (path / "config.json").is_file()
            if is_model or incomplete.startswith(PATH_STARTS):
                yield name if is_model else name + "/"
