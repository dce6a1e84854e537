"""Which tokenizer files a model has, and why they are not enough. Reads a few bytes of each."""

from importlib.util import find_spec
from pathlib import Path

from d3cli.base.errors import ModelError
from d3cli.files.json_files import LFS_HINT, is_pointer
from d3cli.files.vet_files import SENTENCEPIECE

WHOLE = "tokenizer.json"
# Files that transformers can make a tokenizer from, besides SentencePiece's.
OTHERS = ("vocab.json", "vocab.txt", "tekken.json")
NEEDED = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # package: module
OTHER_REPOSITORY = f"use a repository of the model that has {WHOLE}"


def has_tokenizer(directory: Path) -> bool:
    """Whether the directory has a file that a tokenizer can be made from, or might be."""
    return any((directory / name).is_file() for name in (WHOLE, *OTHERS)) or bool(
        _sentencepiece_files(directory)
    )


def refuse_without_tokenizer(name: str, directory: Path) -> None:
    """Refuses a model whose tokenizer files are missing or need a package that is not installed.

    transformers would build a tokenizer that knows no words, or name the wrong package.

    Raises:
        ModelError: naming the file that is there, and what is missing.
    """
    if (directory / WHOLE).is_file():
        return
    lacks = f"{name} has no {WHOLE}"
    models = _sentencepiece_files(directory)
    if not has_tokenizer(directory):
        parts = [*directory.glob("merges.txt"), *directory.glob("*.tiktoken")]
        if parts:
            raise ModelError(f"{lacks}, only {parts[0].name}", OTHER_REPOSITORY)
        raise ModelError(
            f"{name} has no tokenizer: {WHOLE} is missing",
            f"copy {WHOLE} and tokenizer_config.json from the model that it was made from",
        )
    for path in models:
        with path.open("rb") as file:
            head = file.read(64)
        if is_pointer(head):
            raise ModelError(f"{path} is a Git LFS pointer, not the file itself", LFS_HINT)
        if not head.startswith(b"\n"):  # the first field of its protocol buffer
            raise ModelError(
                f"{lacks}, only {path.name}, which is not a SentencePiece model", OTHER_REPOSITORY
            )
    missing = [package for package, module in NEEDED.items() if not _is_installed(module)]
    if models and missing:
        raise ModelError(
            f"{lacks}, only {models[0].name}, which is read with the "
            f"package{'s' * (len(missing) > 1)} {' and '.join(missing)}",
            f"run: pip install {' '.join(missing)}; or {OTHER_REPOSITORY}",
        )


def cause_of_failure(directory: Path, error: str) -> tuple[str, str]:
    """Why a tokenizer could not be made from the files, and what to do about it.

    Args:
        error: what transformers said, or what is wrong with the tokenizer that it made.
    """
    if (directory / WHOLE).is_file():
        return error, (
            f"correct {WHOLE} and tokenizer_config.json, or copy both from the original model; a "
            "file of a newer tokenizers may need a newer d3"
        )
    if models := _sentencepiece_files(directory):
        return f"it has no {WHOLE}, and {models[0].name} cannot be converted", OTHER_REPOSITORY
    there = [name for name in ("vocab.json", "merges.txt") if (directory / name).is_file()]
    if there == ["vocab.json"]:
        return f"it has vocab.json, but neither merges.txt nor {WHOLE}", OTHER_REPOSITORY
    found = there or [name for name in OTHERS if (directory / name).is_file()]
    problem = f"it has no {WHOLE}, and {' and '.join(found)} cannot be used in its place"
    # transformers names packages that would not help.
    return problem if "install" in error else f"{problem}: {error}", OTHER_REPOSITORY


def _sentencepiece_files(directory: Path) -> list[Path]:
    return sorted(
        path for path in directory.iterdir() if SENTENCEPIECE.search(path.name) and path.is_file()
    )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
