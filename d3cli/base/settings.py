"""Settings and names: the places of files, the content of config.toml, and the aliases.

Knows nothing of models except their names.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from d3cli.base.atomic_files import make_directory, replace_file
from d3cli.base.bounded_files import MIB, FileKind
from d3cli.base.errors import D3Error, UsageError

BUILTIN = "demo"
ALIAS_SIMILARITY = 0.85
GGUF_MAGIC = b"GGUF"
PATH_STARTS = ("/", "./", "../", "~")
_DEEP = re.compile(r"""^[ \t\[]*(?:[\w"'-]+[ \t]*\.[ \t]*){32}""", re.MULTILINE)
_CONFIG = FileKind(what="config file", largest=MIB, hint="correct it, or move it away")


def config_file() -> Path:
    """``config.toml`` under ``$D3_HOME``, else under ``$XDG_CONFIG_HOME/d3``."""
    if home := os.environ.get("D3_HOME"):
        return Path(home) / "config.toml"
    return Path(os.environ.get("XDG_CONFIG_HOME") or _home() / ".config") / "d3" / "config.toml"


def state_dir() -> Path:
    """The directory for d3's own files: ``$D3_HOME``, else ``$XDG_STATE_HOME/d3``."""
    if home := os.environ.get("D3_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_STATE_HOME") or _home() / ".local" / "state") / "d3"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # no HOME, and the user is unknown to the system
        raise UsageError("this user has no home directory", "set D3_HOME to a directory") from error


def load_settings() -> dict[str, Any]:
    """The content of the user's config file; empty if there is none.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    path = config_file()
    try:
        text = _config_text()
        deep = _DEEP.search(text) is not None  # tomllib takes minutes for a key of 100,000 parts
        found: dict[str, Any] = {} if deep else tomllib.loads(text)
    except RecursionError:
        raise UsageError(
            f"the config file {path} cannot be read: lists in lists, too many", _CONFIG.hint
        ) from None
    except ValueError as error:
        raise UsageError(f"the config file {path} cannot be read: {error}", _CONFIG.hint) from error
    if deep:
        raise UsageError(f"the config file {path} has a key of more than 32 parts", _CONFIG.hint)
    return found


def _config_text() -> str:
    """The config file's text; empty if there is none."""
    path = config_file()
    return _CONFIG.decode(_CONFIG.find(path) or b"", f"the config file {path}")


def default_model() -> str:
    """The model to run if none is named: $D3_MODEL, else the config file's, else the built-in one.

    Raises:
        UsageError: the config file's value is not text.
    """
    configured = os.environ.get("D3_MODEL") or load_settings().get("model") or BUILTIN
    if not isinstance(configured, str):
        raise UsageError(
            f"model in {config_file()} must be a name in quotes",
            'for example: model = "llama-3-8b"',
        )
    return configured


def save_setting(name: str, value: str) -> Path:
    """Sets one key of config.toml and keeps everything else, comments included; returns the path.

    A new directory gets mode 0700, the file 0600. A crash leaves the old file or the new one.

    Raises:
        UsageError: the existing file cannot be read.
        D3Error: the file cannot be written.
    """
    import tomlkit  # slow; only needed to write

    load_settings()  # a damaged file is reported, not replaced
    path = config_file()
    try:
        document = tomlkit.parse(_config_text())
        document[name] = value
        make_directory(path.parent)
        replace_file(path.resolve(), tomlkit.dumps(document))  # a link stays a link
    except (OSError, ValueError) as error:  # ValueError: the path is not UTF-8
        reason = getattr(error, "strerror", None) or error
        raise D3Error(
            f"the config file {path} cannot be written: {reason}",
            "check its directory's permissions, or set D3_HOME to another",
        ) from error
    return path


@cache
def shipped_aliases() -> Mapping[str, str]:
    """d3's own aliases and their hub ids."""
    return tomllib.loads(files("d3cli").joinpath("aliases.toml").read_text(encoding="utf-8"))


def aliases() -> dict[str, str]:
    """All aliases with their hub ids or directories. The user's own aliases take precedence.

    Raises:
        UsageError: the user's ``[aliases]`` is not a table of strings.
    """
    own = load_settings().get("aliases", {})
    if not isinstance(own, dict) or not all(
        isinstance(target, str) and target for target in own.values()
    ):
        raise UsageError(
            f"[aliases] in {config_file()} must map names to model ids in quotes",
            'for example: mine = "org/name"',
        )
    return {**shipped_aliases(), **own}


def nearest_aliases(name: str, similarity: float = 0.6) -> list[str]:
    """Up to three aliases that are similar to `name`, the most similar first."""
    others = [alias for alias in (BUILTIN, *aliases()) if alias != name]
    return difflib.get_close_matches(name.lower(), others, n=3, cutoff=similarity)


def names_a_model(text: str) -> bool:
    """Whether a single command-line argument is a model rather than a prompt.

    A model is an alias, a path, a GGUF file, a directory with a config.json or a GGUF file, a name
    of the form ``org/name`` or ``name.gguf``, or a word very similar to an alias. So a mistyped
    path or alias is an unknown model, not a prompt.
    """
    if text == BUILTIN or text in aliases():
        return True
    try:
        if text and _is_model(Path(text).expanduser()):
            return True
    except (OSError, RuntimeError, ValueError):  # too long, no such home, a NUL
        return False
    if not text or any(character.isspace() for character in text):
        return False
    if looks_like_hub_id(text) or text.startswith(PATH_STARTS) or text.lower().endswith(".gguf"):
        return True
    return bool(nearest_aliases(text, ALIAS_SIMILARITY))


def _is_model(path: Path) -> bool:
    """Whether a path leads to a model. Of a file whose name does not say so, the magic is read."""
    if path.is_file():
        with path.open("rb", buffering=0) as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    return (path / "config.json").is_file() or any(path.glob("*.gguf"))


def looks_like_hub_id(text: str) -> bool:
    """Whether the text has the form ``org/name`` of a model id on the hub."""
    owner, slash, name = text.partition("/")
    allowed = frozenset("-_.")
    return bool(slash) and all(
        part
        and part.isascii()
        and part[0].isalnum()
        and all(character.isalnum() or character in allowed for character in part)
        for part in (owner, name)
    )
