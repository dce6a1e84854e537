"""Settings and names: where files live, what config.toml says, which aliases there are.

Knows nothing of models beyond their names.
"""

import difflib
import os
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
PATH_STARTS = ("/", "./", "../", "~")
_CONFIG = FileKind(what="config file", largest=MIB, hint="correct it, or move it away")


def config_file() -> Path:
    """``config.toml`` under ``$D3_HOME``, else under ``$XDG_CONFIG_HOME/d3``."""
    if home := os.environ.get("D3_HOME"):
        return Path(home) / "config.toml"
    return Path(os.environ.get("XDG_CONFIG_HOME") or _home() / ".config") / "d3" / "config.toml"


def state_dir() -> Path:
    """Where d3 keeps what it found out: ``$D3_HOME``, else ``$XDG_STATE_HOME/d3``."""
    if home := os.environ.get("D3_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_STATE_HOME") or _home() / ".local" / "state") / "d3"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # no HOME, and no entry of this user's
        raise UsageError("this user has no home directory", "set D3_HOME to a directory") from error


def load_settings() -> dict[str, Any]:
    """The user's config file as it is; empty where there is none.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    path = config_file()
    try:
        return tomllib.loads(_config_text())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the config file {path} cannot be read: {error}", _CONFIG.hint) from error


def _config_text() -> str:
    """Empty where there is no config file."""
    path = config_file()
    return _CONFIG.decode(_CONFIG.find(path) or b"", f"the config file {path}")


def default_model() -> str:
    """The model that runs when none is named: $D3_MODEL, the config file's, the built-in one.

    Raises:
        UsageError: the config file's is no text.
    """
    configured = os.environ.get("D3_MODEL") or load_settings().get("model") or BUILTIN
    if not isinstance(configured, str):
        raise UsageError(
            f"model in {config_file()} must be a name in quotes",
            'for example: model = "llama-3-8b"',
        )
    return configured


def save_setting(name: str, value: str) -> Path:
    """Sets one key of config.toml and keeps the rest, comments too; returns the file.

    The directory is made 0700 and the file 0600; it is replaced at once, so that a crash leaves
    the old file or the new one.

    Raises:
        UsageError: the file that is there cannot be read.
        D3Error: it cannot be written.
    """
    import tomlkit  # only a writer needs it

    load_settings()  # a damaged file is reported, not replaced
    path = config_file()
    try:
        document = tomlkit.parse(_config_text())
        document[name] = value
        make_directory(path.parent)
        replace_file(path.resolve(), tomlkit.dumps(document))  # a link to it stays one
    except (OSError, ValueError) as error:  # the latter: a path that is not UTF-8
        reason = getattr(error, "strerror", None) or error
        raise D3Error(
            f"the config file {path} cannot be written: {reason}",
            "check its directory's permissions, or set D3_HOME to another",
        ) from error
    return path


@cache
def shipped_aliases() -> Mapping[str, str]:
    """The aliases that come with d3cli, and the hub ids that they stand for."""
    return tomllib.loads(files("d3cli").joinpath("aliases.toml").read_text(encoding="utf-8"))


def aliases() -> dict[str, str]:
    """Every alias and the hub id or directory that it stands for; the user's own win.

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
    """Up to three aliases that look like `name`, the nearest first."""
    others = [alias for alias in (BUILTIN, *aliases()) if alias != name]
    return difflib.get_close_matches(name.lower(), others, n=3, cutoff=similarity)


def names_a_model(text: str) -> bool:
    """Whether a lone command-line argument is a model rather than a prompt.

    It is one if it is an alias, written as a path, a directory with a config.json, of the form
    ``org/name``, or a word that is very like an alias. A path or an alias with a typing error is
    then an unknown model, not a prompt.
    """
    if text == BUILTIN or text in aliases():
        return True
    if not text or any(character.isspace() for character in text):
        return False
    if looks_like_hub_id(text) or text.startswith(PATH_STARTS):
        return True
    try:
        if (Path(text).expanduser() / "config.json").is_file():
            return True
    except (OSError, RuntimeError, ValueError):  # too long for a path, no home, a NUL
        return False
    return bool(nearest_aliases(text, ALIAS_SIMILARITY))


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
