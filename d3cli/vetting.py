"""What a stranger's model may say, looked at before transformers sees its files.

transformers takes a model at its word: it would hand the name of an attention kernel to a loader of
others' code, follow a link out of the directory, and build whatever sizes a config asks for.
Nothing here runs or allocates what it looks at. Knows nothing of devices or depth.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from d3cli.errors import ModelError
from d3cli.model_json import BROKEN_FILES, read_json
from d3cli.weights import SINGLE_FILE, TensorInfo

DO_NOT_USE = "do not use this model"

# Everything that transformers or d3 reads of a model. Other files are left alone.
READ = (".safetensors", ".json", ".jinja", ".model", ".txt")
TEMPLATES = "additional_chat_templates"
LARGEST_TEXT = 128 << 20  # bytes of a vocabulary or a template

# What may compute attention or experts: transformers takes any other name for a repository of code.
IMPLEMENTATIONS = {
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "grouped_mm",
    "batched_mm",
}
# How many there are of something: each may be built one by one.
MOST = 100_000
SIZES = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "n_embd",
    "n_head",
    "num_attention_heads",
    "num_key_value_heads",
}
COUNTS = re.compile(r"(num|n)_.*(layers?|heads?|experts?|groups?|blocks?|stages?)$|n_layer|n_head")

# A tokenizer's replacements of text, one after the other: by how much they may make it longer.
LARGEST_GROWTH = 256


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
        if path.suffix not in (".safetensors", ".json") and target.stat().st_size > LARGEST_TEXT:
            raise ModelError(
                f"{path} has {target.stat().st_size:,} bytes, and may have {LARGEST_TEXT:,}",
                DO_NOT_USE,
            )
    _vet_tokenizer(directory)


def vet_config(name: str, config: dict[str, Any]) -> None:
    """Refuses code of others and absurd counts, however deep in a config they stand.

    Raises:
        ModelError: it should not be used.
    """
    elsewhere = config.get("transformers_weights")
    if elsewhere is not None and elsewhere != SINGLE_FILE:
        raise ModelError(
            f"the config.json of {name} wants its weights from {elsewhere!r:.100}",
            f"d3 reads {SINGLE_FILE}, or the files that its index names",
        )
    for key, value in _entries(config):
        if "implementation" in key:
            for wanted in value.values() if isinstance(value, dict) else [value]:
                if wanted is not None and wanted not in IMPLEMENTATIONS:
                    raise ModelError(
                        f"the config.json of {name} names other code to run: {key} {wanted!r:.100}",
                        DO_NOT_USE,
                    )
        if key in SIZES and isinstance(value, int | float) and not value >= 1:
            raise ModelError(f"the config.json of {name} has the {key} {value!r:.40}", BROKEN_FILES)
        is_count = COUNTS.match(key) and isinstance(value, int | float)
        if is_count and not abs(value) <= MOST:  # NaN is no count, either
            raise ModelError(
                f"the config.json of {name} has the {key} {value!r:.40}, and may have {MOST:,}",
                BROKEN_FILES,
            )


def refuse_other_sizes(name: str, built: Any, held: Iterable[TensorInfo]) -> None:
    """Refuses a config that describes a larger model than the files hold.

    transformers would build it, fill what is missing with random numbers, and only then report.

    Args:
        built: the model as its config describes it, on torch's meta device.
        held: the tensors in the files.

    Raises:
        ModelError: config and weights do not belong together.
    """
    wrong = "config.json and the weights do not belong together"
    expected = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    there = 0
    for tensor in held:
        # Numbers that are no floats are quantized: two weights each, at most.
        there += tensor.numel if tensor.is_float else 2 * tensor.numel
        if tensor.is_float and expected.get(tensor.name, tensor.shape) != tensor.shape:
            raise ModelError(
                f"{name} has the wrong shape for {tensor.name}: {list(tensor.shape)}, where its "
                f"config.json asks for {list(expected[tensor.name])}",
                wrong,
            )
    # Tied weights count once; experts may be stored one by one, under other names.
    asked = sum(parameter.numel() for parameter in built.parameters())
    if asked > there + there // 4:
        raise ModelError(
            f"the config.json of {name} asks for {asked:,} weights, but there are {there:,}", wrong
        )


def _home(directory: Path) -> Path:
    """Where a model's files may lie: its directory, or its repository in the hub's cache."""
    resolved = directory.resolve()
    repository = resolved.parent.parent
    in_cache = resolved.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if in_cache else resolved


def files_read(directory: Path) -> Iterator[Path]:
    """Every file of a model that may be read."""
    for folder in (directory, directory / TEMPLATES):
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if path.suffix in READ)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name of a JSON value with what it stands for, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _vet_tokenizer(directory: Path) -> None:
    config = read_json(directory / "tokenizer_config.json")
    for name in config.get("fast_tokenizer_files") or ():
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(
                f"{directory / 'tokenizer_config.json'} names a file elsewhere: {name!r:.100}",
                DO_NOT_USE,
            )
    for other in ("special_tokens_map.json", "added_tokens.json", "chat_template.json"):
        read_json(directory / other)
    path = directory / "tokenizer.json"
    tokenizer = read_json(path)
    growth = 1
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for key, value in _entries(tokenizer.get(part)):
            if key in ("content", "prepend") and isinstance(value, str):
                growth *= max(1, len(value))
    if growth > LARGEST_GROWTH:
        raise ModelError(
            f"{path} makes any text more than {LARGEST_GROWTH} times longer", DO_NOT_USE
        )
