"""Checks a stranger's tokenizer files; see `vet_files`."""

import json
from pathlib import Path
from typing import Any

from d3cli.base.errors import ModelError
from d3cli.files.json_files import DO_NOT_USE, read_json
from d3cli.files.vet_config import entries, vet_tokenizer_class

LARGEST_GROWTH = 256  # times that replacements may lengthen a text
MOST_ADDED_TOKENS = 30_000  # every text is searched for each of them
LARGEST_POST_PROCESSOR = 64 << 10  # bytes, as JSON, of what is put around every text
LONGEST_TOKEN = 10_000  # characters; real tokens have up to about 200


def vet_tokenizer(directory: Path) -> None:
    """Refuses tokenizer files that would make tokenizing slow, huge, or use other files.

    Raises:
        ModelError: the model should not be used.
    """
    _vet_config(directory / "tokenizer_config.json")
    for other in ("special_tokens_map.json", "added_tokens.json", "vocab.json"):
        _vet_tokens(directory / other, read_json(directory / other))
    read_json(directory / "chat_template.json")  # for its bounds
    path = directory / "tokenizer.json"
    tokenizer = read_json(path)
    added = tokenizer.get("added_tokens")
    if isinstance(added, list) and len(added) > MOST_ADDED_TOKENS:
        raise ModelError(f"{path} has {len(added):,} added tokens", DO_NOT_USE)
    model = tokenizer.get("model")
    _vet_tokens(path, [added, model.get("vocab") if isinstance(model, dict) else None])
    size = len(json.dumps(tokenizer.get("post_processor")))
    if size > LARGEST_POST_PROCESSOR:
        raise ModelError(f"{path} adds too much to every text", DO_NOT_USE)
    if _growth(tokenizer) > LARGEST_GROWTH:
        raise ModelError(
            f"{path} makes every text more than {LARGEST_GROWTH} times longer", DO_NOT_USE
        )


def _vet_config(path: Path) -> None:
    """Checks tokenizer_config.json."""
    config = read_json(path)
    vet_tokenizer_class(str(path), config)
    others = config.get("fast_tokenizer_files") or ["tokenizer.json"]
    if others != ["tokenizer.json"]:  # transformers would read them instead of the checked one
        raise ModelError(f"{path} names other tokenizer files: {others!r:.100}", DO_NOT_USE)
    _vet_tokens(path, {name: value for name, value in config.items() if name != "chat_template"})


def _vet_tokens(path: Path, found: Any) -> None:
    longest = _longest(found)
    if longest > LONGEST_TOKEN:
        raise ModelError(f"{path} has a token of {longest:,} characters", DO_NOT_USE)


def _longest(value: Any) -> int:
    """Characters of the longest string in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return max(_longest([*value]), _longest([*value.values()]))
    if isinstance(value, list):
        return max(map(_longest, value), default=0)
    return 0


def _growth(tokenizer: dict[str, Any]) -> int:
    """How many times longer all replacements together can make a text."""
    growth = 1
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for key, value in entries(tokenizer.get(part)):
            if key in ("content", "prepend") and isinstance(value, str):
                growth *= max(1, len(value))
    return growth
