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
    """Aliases, cached models, GGUF files and directories whose names begin with `incomplete`."""
    found: list[str] = []
    if not incomplete.startswith(PATH_STARTS):
        with suppress(D3Error):  # a damaged config file
            found += sorted(name for name in (BUILTIN, *aliases()) if name.startswith(incomplete))
        with suppress(OSError):
            found += sorted(name for name in _in_cache() if name.startswith(incomplete))
    with suppress(OSError, RuntimeError):
        found += sorted(_paths(incomplete))
    return found


def _in_cache() -> Iterator[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in Path(HF_HUB_CACHE).glob("models--*--*"):
        yield "/".join(path.name.removeprefix("models--").split("--", 1))


def _paths(incomplete: str) -> Iterator[str]:
    """GGUF files, and directories of models. For a path also other directories, with a slash."""
    before, slash, _ = incomplete.rpartition("/")
    folder = Path(before + slash).expanduser() if slash else Path()
    for path in folder.iterdir():
        name = before + slash + path.name
        if not name.startswith(incomplete) or path.name.startswith("."):
            continue
        if not path.is_dir():
            if path.suffix == ".gguf":
                yield name
        elif (path / "config.json").is_file() or any(path.glob("*.gguf")):
            yield name
        elif incomplete.startswith(PATH_STARTS):
            yield name + "/"
