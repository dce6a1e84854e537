"""Which tensors of a GGUF file make which weights of a Hugging Face model, and how.

The names and the changes are transformers' own. Reads headers, never weights.
"""

import re
import warnings
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    GPT2TensorProcessor,
    LlamaTensorProcessor,
    Qwen2MoeTensorProcessor,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from d3cli.base.errors import ModelError, one_line
from d3cli.depth.families import OTHER_TYPE
from d3cli.files.gguf import GgufModel, GgufTensor
from d3cli.files.json_files import BAD_METADATA, OTHER_FORMAT
from d3cli.files.safetensors import Description, TensorInfo
from d3cli.files.vet_config import vet_config
from d3cli.model.config import model_class, parse_config, without_choices
from d3cli.model.gguf_config import gguf_config
from d3cli.model.gguf_rope import ROPE_TENSORS

HEAD = "lm_head.weight"
# llama.cpp's names, where transformers has several types for one of them.
_ARCHITECTURES = {"mixtral": "llama"}
# Tensors that the processors of Llama and GPT-2 change.
_ROTATED = re.compile(r"\.attn_[qk]\.")
_CONV1D = re.compile(r"\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$")


class Change(Enum):
    """What must happen to a tensor besides unpacking it."""

    NONE = "nothing"
    ROWS = "its rows are put into another order"
    TRANSPOSED = "it is transposed"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one weight is made.

    Attributes:
        info: the weight as the Hugging Face model has it. Its `dtype` is the file's name for it.
        sources: the tensors that it is made of. Several are the gates of all experts, then their
            up projections.
        change: what transformers does to a matrix. A vector is changed by `processed`.
        linear: whether it is the weight of an `nn.Linear`.
    """

    info: TensorInfo
    sources: tuple[GgufTensor, ...]
    processor: TensorProcessor
    change: Change
    linear: bool

    def processed(self, source: GgufTensor, values: Any) -> Any:
        """The values of a source after transformers' changes."""
        return self.processor.process(
            values, name=source.name, tensor_key_mapping={}, parsed_parameters={"tensors": {}}
        ).weights


def describe_gguf(name: str, model: GgufModel) -> tuple[Description, dict[str, Recipe]]:
    """Describes a GGUF file as the Hugging Face model that it makes.

    Returns the description, and how each of its weights is made.

    Args:
        name: what to call the model in messages.

    Raises:
        ModelError: transformers does not know the model, or does not use all of its tensors.
    """
    config = gguf_config(name, model)
    model_of = partial(Description, name, config, is_gguf=True)
    vet_config(model_of(tensors=()))
    blocks = {int(found[1]) for t in model.tensors if (found := re.match(r"blk\.(\d+)\.", t))}
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    if layers != 1 + max(blocks, default=-1):
        raise ModelError(
            f"the metadata of {name} asks for {layers!r:.20} layers, but the file holds "
            f"{1 + max(blocks, default=-1):,}",
            BAD_METADATA,
        )
    built = _build(model_of(tensors=()))
    processor = _processor(model, config)
    sources = _sources(name, model, built, processor)
    linears = {
        f"{path}.weight" for path, module in built.named_modules() if type(module) is nn.Linear
    }
    recipes = {
        key: _recipe(key, found, processor, linear=key in linears) for key, found in sources.items()
    }
    infos = tuple(recipe.info for recipe in recipes.values())
    return model_of(tensors=infos), recipes


def _build(model: Description) -> Any:
    """The model without weights, on torch's meta device."""
    parsed = without_choices(parse_config(model))
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model_class(parsed)._from_config(parsed, attn_implementation="eager")
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # odd values may raise anything
        raise ModelError(
            f"no model can be built from {model.stated_in}: {one_line(error)}", model.config_hint
        ) from error


class _Names:
    """A model's names without its modules.

    For each module, transformers would build the table of all names again: seconds in all. It does
    so for models that were converted from a part, which the supported ones are not.
    """

    def __init__(self, built: Any) -> None:
        self.config, self.state_dict = built.config, built.state_dict

    def named_children(self) -> tuple[()]:
        return ()


def _processor(model: GgufModel, config: dict[str, Any]) -> TensorProcessor:
    kind = TENSOR_PROCESSORS.get(model.architecture, TensorProcessor)
    return kind(config=config)


def _sources(
    name: str, model: GgufModel, built: Any, processor: TensorProcessor
) -> dict[str, list[GgufTensor]]:
    """The tensors of each weight, by its name in the Hugging Face model."""
    model_type = built.config.model_type
    is_mixtral = model_type == "mixtral"
    try:
        names = get_gguf_hf_weights_map(
            _Names(built),
            Qwen2MoeTensorProcessor() if is_mixtral else processor,
            model_type=_ARCHITECTURES.get(model_type, model_type),
        )
    except NotImplementedError as error:
        raise ModelError(
            f'transformers cannot read a GGUF file of the type "{model_type}"', OTHER_TYPE
        ) from error
    sources: dict[str, list[GgufTensor]] = {}
    unused = []
    for tensor in model.tensors.values():
        # Weights of experts are no modules, so transformers' names for them have no suffix.
        key = names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"))
        if key is not None:
            sources.setdefault(key, []).append(tensor)
        elif tensor.name not in ROPE_TENSORS:
            unused.append(tensor.name)
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise ModelError(
            f"{name} has tensors that transformers' {type(built).__name__} has no place for: "
            f"{', '.join(sorted(unused)[:3])}{more}",
            OTHER_FORMAT,
        )
    for found in sources.values():
        found.sort(key=lambda tensor: tensor.name)  # the gate comes before the up projection
    _refuse_incomplete(name, built, sources)
    return sources


def _refuse_incomplete(name: str, built: Any, sources: dict[str, list[GgufTensor]]) -> None:
    """Raises ModelError if the file has no tensor for a weight, or only one of two."""
    tied = built.config.tie_word_embeddings
    lacking = [key for key in built.state_dict() if key not in sources]
    lacking = [key for key in lacking if not (tied and key.endswith(HEAD))]
    lacking += [key for key in sources if key.endswith("gate_up_proj") and len(sources[key]) == 1]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ModelError(f"{name} lacks tensors for {', '.join(lacking[:3])}{more}", BAD_METADATA)


def _recipe(
    name: str, sources: list[GgufTensor], processor: TensorProcessor, *, linear: bool
) -> Recipe:
    first = sources[0]
    shape, change = first.shape, _change(first, processor)
    if change is Change.TRANSPOSED:
        shape = shape[::-1]
    if len(sources) > 1:
        experts, rows, *rest = shape
        shape = (experts, rows * len(sources), *rest)
    copied = not first.type.is_plain or len(sources) > 1 or change is not Change.NONE
    info = TensorInfo(name, first.type.name, shape, copied=copied)
    return Recipe(info, tuple(sources), processor, change, linear)


def _change(tensor: GgufTensor, processor: TensorProcessor) -> Change:
    """What a processor of transformers does to a matrix."""
    if len(tensor.shape) == 2:
        if isinstance(processor, LlamaTensorProcessor) and _ROTATED.search(tensor.name):
            return Change.ROWS
        if isinstance(processor, GPT2TensorProcessor) and _CONV1D.search(tensor.name):
            return Change.TRANSPOSED
    return Change.NONE
