"""Checks a stranger's model directory before transformers sees any of it.

transformers trusts a model. It would pass the name of an attention kernel to a loader of remote
code, follow a link out of the directory, and build whatever sizes a config asks for. The modules
`vet_*` look first. They run nothing and allocate nothing that a model asks for. They know nothing
of devices or depth.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from d3cli.base.errors import ModelError
from d3cli.files.json_files import BROKEN_LINK, DO_NOT_USE
from d3cli.files.safetensors import INDEX, unused_shards, weight_files
from d3cli.files.vet_tokenizer import vet_tokenizer

# The files that transformers or d3 reads besides the weights. Other files do not matter.
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
# Vocabularies of less common tokenizer classes.
READ |= {"dict.txt", "bpe.codes", "source.spm", "target.spm", "prophetnet.tokenizer"}
READ |= {"vocab-src.json", "vocab-tgt.json", "target_vocab.json", "entity_vocab.json"}
READ |= {"tekken.json", "normalizer.json", "emoji.json", "byte_maps.json"}
READ |= {"word_shape.json", "word_pronunciation.json"}
SENTENCEPIECE = re.compile(r"\.model(\.v\d+.*)?$")  # and Mistral's numbered versions
TEMPLATES = "additional_chat_templates"
LARGEST_TEXT = 128 << 20  # bytes of a vocabulary or a template


def vet_files(directory: Path) -> None:
    """Refuses links to other places, irregular or huge files, and unsafe tokenizers.

    Raises:
        ModelError: the model should not be used.
    """
    home = _home(directory)
    for path in files_read(directory):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise ModelError(f"{path} is a broken link", BROKEN_LINK) from error
        if not target.is_relative_to(home):
            raise ModelError(
                f"{path} is a link to a file outside the model: {target}",
                "copy that file into the directory, if you trust it",
            )
        if not target.is_file():
            raise ModelError(f"{path} is not a regular file", DO_NOT_USE)
        size = target.stat().st_size
        if path.suffix != ".safetensors" and size > LARGEST_TEXT:
            raise ModelError(
                f"{path} has {size:,} bytes; the limit is {LARGEST_TEXT:,}", DO_NOT_USE
            )
    vet_tokenizer(directory)


def files_read(directory: Path) -> Iterator[Path]:
    """Every file in the directory that d3 or transformers may read."""
    names = READ | {*weight_files(directory), *unused_shards(directory)}
    for path in sorted(directory.iterdir()):
        if path.name in names or SENTENCEPIECE.search(path.name):
            yield path
    templates = directory / TEMPLATES
    if templates.is_dir():
        yield from sorted(templates.glob("*.jinja"))


def _home(directory: Path) -> Path:
    """Where a model's files may lie: its directory, or its repository in the hub's cache."""
    resolved = directory.resolve()
    repository = resolved.parent.parent
    in_cache = resolved.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if in_cache else resolved
