"""What a stranger's model may say, looked at before transformers sees its files.

transformers takes a model at its word: it would hand the name of an attention kernel to a loader of
others' code, follow a link out of the directory, and build whatever sizes a config asks for.
Nothing here runs or allocates what it looks at. Knows nothing of devices or depth.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d3cli.base.errors import ModelError
from d3cli.files.json_files import BROKEN_FILES, DO_NOT_USE, read_json
from d3cli.files.safetensors import INDEX, weight_files
from d3cli.files.vet_config import entries, vet_tokenizer_class

# What transformers or d3 reads of a model, beside its weights. Other files are left alone.
READ = {
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.json",
    "chat_template.jinja",
}
# The vocabularies of rarer tokenizers, by the classes that a model may name.
READ |= {"dict.txt", "bpe.codes", "source.spm", "target.spm", "prophetnet.tokenizer"}
READ |= {"vocab-src.json", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json"}
READ |= {"tekken.json", "normalizer.json", "emoji.json", "byte_maps.json"}
READ |= {"word_shape.json", "word_pronunciation.json"}
MODEL = re.compile(r"\.model(\.v\d+.*)?$")  # SentencePiece's, and Mistral's versions of theirs
TEMPLATES = "additional_chat_templates"
LARGEST_TEXT = 128 << 20  # bytes of a vocabulary or a template


# By how much a tokenizer's replacements of text may make it longer; tokens beside its vocabulary,
# for each of which text is searched; and what it puts around any text, as JSON.
LARGEST_GROWTH, MOST_ADDED_TOKENS, LARGEST_POST_PROCESSOR = 256, 30_000, 64 << 10
LONGEST_TOKEN = 10_000  # characters; real ones have a hundred or two


def vet_files(directory: Path) -> None:
    """Refuses files that lie elsewhere, are no files, or that no tokenizer should be built from.

    Raises:
        ModelError: it should not be used.
    """
    home = _home(directory)
    for path in files_read(directory):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise ModelError(f"{path} leads nowhere", BROKEN_FILES) from error
        if not target.is_relative_to(home):
            raise ModelError(
                f"{path} is a link to a file elsewhere: {target}",
                "copy that file into the directory, if you trust it",
            )
        if not target.is_file():
            raise ModelError(f"{path} is no regular file", DO_NOT_USE)
        if path.suffix != ".safetensors" and target.stat().st_size > LARGEST_TEXT:
            raise ModelError(
                f"{path} has {target.stat().st_size:,} bytes, and may have {LARGEST_TEXT:,}",
                DO_NOT_USE,
            )
    _vet_tokenizer(directory)


def _home(directory: Path) -> Path:
    """Where a model's files may lie: its directory, or its repository in the hub's cache."""
    resolved = directory.resolve()
    repository = resolved.parent.parent
    in_cache = resolved.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if in_cache else resolved


def files_read(directory: Path) -> Iterator[Path]:
    """Every file of a model that may be read, of those that are there."""
    names = READ | set(weight_files(directory))
    found = [path for path in directory.iterdir() if path.name in names or MODEL.search(path.name)]
    templates = directory / TEMPLATES
    yield from sorted(found)
    if templates.is_dir():
        yield from sorted(templates.glob("*.jinja"))


def _vet_tokens(path: Path, found: Any) -> None:
    longest = _longest(found)
    if longest > LONGEST_TOKEN:
        raise ModelError(f"{path} has a token of {longest:,} characters", DO_NOT_USE)


def _longest(value: Any) -> int:
    """Characters of the longest text in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return max(_longest([*value]), _longest([*value.values()]))
    if isinstance(value, list):
        return max(map(_longest, value), default=0)
    return 0


def _vet_tokenizer(directory: Path) -> None:
    config = read_json(directory / "tokenizer_config.json")
    vet_tokenizer_class(str(directory / "tokenizer_config.json"), config)
    others = config.get("fast_tokenizer_files") or ["tokenizer.json"]
    if others != ["tokenizer.json"]:  # which transformers would read in place of what is vetted
        raise ModelError(
            f"{directory / 'tokenizer_config.json'} names other tokenizer files: {others!r:.100}",
            DO_NOT_USE,
        )
    _vet_tokens(
        directory / "tokenizer_config.json",
        {name: value for name, value in config.items() if name != "chat_template"},
    )
    for other in ("special_tokens_map.json", "added_tokens.json", "vocab.json"):
        _vet_tokens(directory / other, read_json(directory / other))
    read_json(directory / "chat_template.json")
    path = directory / "tokenizer.json"
    tokenizer = read_json(path)
    added = tokenizer.get("added_tokens")
    if isinstance(added, list) and len(added) > MOST_ADDED_TOKENS:
        raise ModelError(f"{path} has {len(added):,} added tokens", DO_NOT_USE)
    model = tokenizer.get("model")
    _vet_tokens(path, [added, model.get("vocab") if isinstance(model, dict) else None])
    size = len(json.dumps(tokenizer.get("post_processor")))
    if size > LARGEST_POST_PROCESSOR:
        raise ModelError(f"{path} adds too much to any text", DO_NOT_USE)
    growth = 1
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for key, value in entries(tokenizer.get(part)):
            if key in ("content", "prepend") and isinstance(value, str):
                growth *= max(1, len(value))
    if growth > LARGEST_GROWTH:
        raise ModelError(
            f"{path} makes any text more than {LARGEST_GROWTH} times longer", DO_NOT_USE
        )
