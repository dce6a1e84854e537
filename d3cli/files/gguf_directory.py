"""Which GGUF model a directory holds. Looks at names, magic bytes and headers, never at weights."""

from pathlib import Path

from d3cli.base.errors import ModelError, SeveralModelsError
from d3cli.files.gguf import PART, is_gguf, read_kind

MOST_HEADERS = 64  # a header of a large vocabulary takes a tenth of a second
NAMED = 4  # files that an error lists


def gguf_models(directory: Path) -> list[Path]:
    """The GGUF models in a directory, sorted by name; of a split one its first part.

    Files that only belong to a model, such as multimodal projectors, do not count, unless there is
    nothing else.

    Raises:
        OSError: the directory cannot be read.
    """
    models: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if not path.name.startswith(".") and is_gguf(path):
            part = PART.fullmatch(path.name)
            models.setdefault(f"{part['stem']} of {part['count']}" if part else path.name, path)
    found = list(models.values())
    if len(found) == 1 or len(found) > MOST_HEADERS:
        return found
    return [path for path in found if _is_model(path)] or found


def _is_model(path: Path) -> bool:
    """Whether a file holds a model. A damaged one might: its own error says more."""
    if "mmproj" in path.name.lower():
        return False
    try:
        return read_kind(path) == "model"
    except ModelError:
        return True


def only_gguf(directory: Path) -> Path | None:
    """The one GGUF model in a directory; None if there is none.

    Raises:
        SeveralModelsError: there are several.
        OSError: the directory cannot be read.
    """
    found = gguf_models(directory)
    if len(found) > 1:
        names = [path.name for path in found[:NAMED]]
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise SeveralModelsError(
            f"{directory} holds {len(found)} models in GGUF: {', '.join(names)}{more}",
            f"give the path of one, such as {found[0]}",
        )
    return found[0] if found else None


def first_part(path: Path) -> Path:
    """The first part of a split model, by the name of any part; other paths stay as they are."""
    part = PART.fullmatch(path.name)
    if part is None or int(part["count"]) < 2:
        return path
    return path.with_name(f"{part['stem']}-00001-of-{part['count']}.gguf")
