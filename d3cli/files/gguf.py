"""A model in GGUF: one file, or the parts of a split one, read and checked as a whole.

`read_gguf` refuses whatever d3 cannot run, with one line that names the cause, before transformers
or the `gguf` package reads anything. Knows nothing of how weights are unpacked or configs built.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from d3cli.base.errors import ModelError
from d3cli.base.inert import quoted
from d3cli.depth.families import (
    CANNOT_SKIP,
    GGUF_ARCHITECTURES,
    GGUF_CANNOT_SKIP,
    GGUF_NOT_READ,
)
from d3cli.files.first_bytes import is_gguf
from d3cli.files.gguf_header import Header, read_header
from d3cli.files.gguf_metadata import Metadata, Value
from d3cli.files.gguf_types import GgufTensor

__all__ = ["GgufModel", "GgufTensor", "is_gguf", "read_gguf", "read_kind"]

PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
MOST_PARTS = 10_000
MIXTURES = ("llama", "qwen3moe")  # architectures that may have experts; Mixtral is a llama
OTHER_COPY = "use the safetensors of the model that it was converted from"

# Files in GGUF that are no models, by `general.type` or `general.architecture`.
PARTS_OF_MODELS = {
    "adapter": ("an adapter (LoRA)", "merge it into its base model, then convert that"),
    "mmproj": ("a multimodal projector", "give the file of the language model beside it"),
    "clip": ("a multimodal projector", "give the file of the language model beside it"),
    "imatrix": ("an importance matrix", "give the file of the model itself"),
    "vocab": ("a vocabulary", "give the file of the model itself"),
}


@dataclass(frozen=True)
class GgufModel:
    """A model in GGUF: the headers of all its files. Its weights are not read.

    Attributes:
        paths: its file, or all parts of a split model in order.
        metadata: all keys; those of a split model are in its first part.
        tensors: by name, in the order of the files.
    """

    paths: tuple[Path, ...]
    metadata: Metadata = field(repr=False, compare=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False, compare=False)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture: ``"llama"``, ``"gemma3"``."""
        return str(self.metadata["general.architecture"])

    @property
    def model_type(self) -> str:
        """Its name in transformers: ``"llama"``, ``"gemma3_text"``."""
        if self.architecture == "llama" and _is_mixture(self):
            return "mixtral"
        return GGUF_ARCHITECTURES[self.architecture]

    @cached_property
    def types(self) -> dict[str, int]:
        """The names of the tensors' types, with the bytes stored in each, the most first."""
        found: dict[str, int] = {}
        for tensor in self.tensors.values():
            found[tensor.type.name] = found.get(tensor.type.name, 0) + tensor.nbytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def nbytes(self) -> int:
        """The size of all its files."""
        return sum(path.stat().st_size for path in self.paths)


def read_gguf(path: Path) -> GgufModel:
    """Reads the headers of a model; any part of a split one will do.

    Raises:
        ModelError: a file is damaged, missing, or not a model that d3 can run.
    """
    header = read_header(path)
    headers = _parts(path, header)
    first = next(iter(headers.values()))
    tensors: dict[str, GgufTensor] = {}
    for part, each in headers.items():
        for tensor in each.tensors:
            if tensor.name in tensors:
                raise ModelError(
                    f"the parts of {path} hold the tensor {quoted(tensor.name)} twice: {part} is "
                    "from another model or conversion",
                    "download all parts again",
                )
            tensors[tensor.name] = tensor
    model = GgufModel(tuple(headers), first.metadata, tensors)
    _refuse_other_files(model)
    _refuse_other_architectures(model)
    return model


def read_kind(path: Path) -> str:
    """What a GGUF file holds: "model", or a key of `PARTS_OF_MODELS`.

    Raises:
        ModelError: as for `read_header`.
    """
    header = read_header(path)
    return _kind(header.metadata, bool(header.tensors) or _count(header.metadata) > 1)


def _kind(metadata: Mapping[str, Value], has_tensors: bool) -> str:
    for key in ("general.type", "general.architecture"):
        if (value := metadata.get(key)) in PARTS_OF_MODELS:
            return str(value)
    return "model" if has_tensors else "vocab"


def _count(metadata: Mapping[str, Value]) -> int:
    """Of how many parts a file is one."""
    count = metadata.get("split.count", 1)
    return count if type(count) is int else 1


def _parts(path: Path, header: Header) -> dict[Path, Header]:
    """The parts of a split model, in order; or the file itself."""
    count, number = _count(header.metadata), header.metadata.get("split.no", 0)
    if count <= 1:
        return {path: header}
    if count > MOST_PARTS or type(number) is not int or not 0 <= number < count:
        raise ModelError(
            f"the GGUF file {path} claims to be part {str(number)[:40]} of {count:,}",
            "download it again",
        )
    while path.is_symlink() and not PART.fullmatch(path.name):
        path = path.parent / path.readlink()  # the other parts lie beside what has a part's name
    name = PART.fullmatch(path.name)
    if name is None or (int(name["number"]), int(name["count"])) != (number + 1, count):
        raise ModelError(
            f"{path} is part {number + 1} of {count} of a split model, but has another name",
            f"give the parts the names that they had, which end in -{number + 1:05}-of-{count:05}"
            ".gguf",
        )
    names = [f"{name['stem']}-{part:05}-of-{count:05}.gguf" for part in range(1, count + 1)]
    paths = [path.with_name(each) for each in names]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{path.parent} lacks {missing[0]}{more}, a part of the split model {path.name}",
            "copy the missing parts beside the others, or download them again",
        )
    headers = {part: header if part == path else read_header(part) for part in paths}
    _compare_parts(headers)
    return headers


def _compare_parts(headers: dict[Path, Header]) -> None:
    """Refuses parts of different models.

    Raises:
        ModelError: naming the part that disagrees with the first one.
    """
    total = sum(len(header.tensors) for header in headers.values())
    expected = next(iter(headers.values())).metadata.get("split.tensors.count", total)
    for number, (path, header) in enumerate(headers.items()):
        own = header.metadata
        said = (own.get("split.no"), own.get("split.count"), own.get("split.tensors.count"))
        if said[:2] != (number, len(headers)) or said[2] not in (expected, None):
            raise ModelError(
                f"{path} is not part {number + 1} of {len(headers)} of this model: it says part "
                f"{_shown(said[0], 1)} of {_shown(said[1])}, and {_shown(said[2])} tensors in all",
                "download all parts again",
            )
    if total != expected:
        first = next(iter(headers))
        raise ModelError(
            f"the parts of {first} hold {total:,} tensors, but it says {_shown(expected)}: they "
            "are from different models or conversions",
            "download all parts again",
        )


def _shown(value: Value | None, plus: int = 0) -> str:
    return f"{value + plus:,}" if type(value) is int else quoted(str(value)[:40])


def _refuse_other_files(model: GgufModel) -> None:
    """Raises ModelError for a file that holds no model, or only a part of one."""
    path, metadata = model.paths[0], model.metadata
    kind = _kind(metadata, bool(model.tensors))
    if kind in PARTS_OF_MODELS:
        what, hint = PARTS_OF_MODELS[kind]
        only = "" if kind in ("adapter", "vocab") else ", not a language model"
        raise ModelError(f"the GGUF file {path} holds only {what}{only}", hint)
    stated = metadata.get("general.type", "model")
    if stated != "model":
        raise ModelError(
            f"the GGUF file {path} holds {_shown(stated)}, not a model", "check the path"
        )


def _refuse_other_architectures(model: GgufModel) -> None:
    """Raises ModelError for an architecture that is not proven, or that nothing here can read."""
    path, stated = model.paths[0], model.metadata.get("general.architecture")
    if not isinstance(stated, str):
        raise ModelError(f"the GGUF file {path} names no architecture", "download it again")
    where = f"{path} holds a model of the architecture {quoted(stated[:40])}"
    known = f"d3 reads these architectures from GGUF: {', '.join(sorted(GGUF_ARCHITECTURES))}"
    if stated in GGUF_ARCHITECTURES:
        if _is_mixture(model) and stated not in MIXTURES:
            raise ModelError(f"{where} with several experts, which d3 does not know", OTHER_COPY)
        return
    if stated in GGUF_NOT_READ:
        raise ModelError(f"{where}, which transformers cannot read from GGUF", OTHER_COPY)
    reason = CANNOT_SKIP.get(GGUF_CANNOT_SKIP.get(stated, stated))
    why = f"which cannot skip layers: {reason}" if reason else "which d3 does not support in GGUF"
    raise ModelError(f"{where}, {why}", known)


def _is_mixture(model: GgufModel) -> bool:
    experts = model.metadata.get(f"{model.architecture}.expert_count", 0)
    return isinstance(experts, int) and experts > 0
