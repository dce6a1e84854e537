"""A model on disk as loading needs it: its description, its tokenizer and its weights.

The two formats, a directory of safetensors and a GGUF file, differ only here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from d3cli.base.errors import ModelError, Setting, Words, is_panic, one_line
from d3cli.files.json_files import OTHER_FORMAT, read_json
from d3cli.files.lazy_weights import LazyTensor, lazy_state_dict, read_again
from d3cli.files.names import ModelFiles
from d3cli.files.safetensors import Description, TensorInfo, describe_directory
from d3cli.files.tokenizer_files import WHOLE, cause_of_failure, refuse_without_tokenizer
from d3cli.kernels.ggml_blocks import PLAIN
from d3cli.kernels.ggml_groups import KINDS
from d3cli.kernels.int4_rounding import Groups
from d3cli.kernels.plan import Form, KernelPlan
from d3cli.kernels.process import silent_stderr
from d3cli.model.config import parse_config
from d3cli.model.gguf_config import gguf_generation_settings
from d3cli.model.gguf_tensors import Recipe, describe_gguf
from d3cli.model.gguf_weights import GgufWeights
from d3cli.text.gguf_tokenizer import gguf_tokenizer, tokenizer_notes

OnRead = Callable[[int], None]
# Whether a weight is read after transformers has built the model; it gets a placeholder until then.
IsDeferred = Callable[[TensorInfo], bool]


def nothing_deferred(_: TensorInfo) -> bool:
    """What `IsDeferred` answers for a model on one device."""
    return False


class StoredWeights(Protocol):
    """The weights of a model on disk."""

    @property
    def state(self) -> Mapping[str, Any]:
        """The weights by name, in the form of a state dict that transformers accepts."""

    def read(self, tensor: Tensor) -> Tensor:
        """The values of a tensor of the model, in memory that is freed with the result."""

    def rows(self, tensor: Tensor) -> Any:
        """The same, by rows: ``[first:last]`` of the result reads these rows."""

    def groups(self, tensor: Tensor) -> Callable[[slice], Groups] | None:
        """Rows of a tensor in the 4 bits of the file; None if it holds other bits."""

    def reader(self, tensor: Tensor) -> Callable[[], Tensor]:
        """A function that reads the values of a tensor of the model from the files, at any time.

        For a tensor that is no placeholder it returns the tensor itself.
        """

    def fill(self, model: Any) -> None:
        """Reads what the model lacks, after all other methods."""


class SafetensorsWeights:
    """The weights in a directory; see `StoredWeights`."""

    def __init__(
        self, files: ModelFiles, plan: KernelPlan, on_read: OnRead, is_deferred: IsDeferred
    ) -> None:
        self.state = lazy_state_dict(
            files.path, plan.converts, on_read, partial(_placeholder, plan, is_deferred)
        )

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor from a mapping that ends soon."""
        found: Tensor = read_again(self.state, tensor)
        return found

    rows = read

    def groups(self, _: Tensor) -> None:
        """No file of this format holds d3's 4 bits."""

    def reader(self, tensor: Tensor) -> Callable[[], Tensor]:
        lazy = self._placeholders.get(tensor.data_ptr())
        return (lambda: tensor) if lazy is None else lazy.read

    def fill(self, model: Any) -> None:
        """Reads the weights that d3 would quantize but that no linear holds."""
        for parameter in model.parameters() if self._placeholders else ():
            lazy = None if parameter.is_mkldnn else self._placeholders.get(parameter.data_ptr())
            if lazy is not None:
                parameter.data = lazy.again().to(parameter.dtype)

    @cached_property
    def _placeholders(self) -> dict[int, LazyTensor]:
        """The weights with a placeholder, by its address."""
        return {
            lazy.placeholder.data_ptr(): lazy
            for lazy in self.state.values()
            if lazy.placeholder is not None
        }


def _placeholder(plan: KernelPlan, is_deferred: IsDeferred, tensor: TensorInfo) -> Tensor | None:
    """What stands for a weight that is read later, to be quantized or placed; None for others.

    It takes no memory. Its values are NaN, so that one that stays by mistake cannot go unnoticed.
    """
    if not plan.quantizes_itself(tensor) and not is_deferred(tensor):
        return None
    return torch.full((1,), torch.nan, dtype=plan.form.dtype).expand(tensor.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk that was found and described.

    Attributes:
        files: where it is.
        description: its config and its tensors.
        recipes: how each weight of a GGUF file is made, by name; None for safetensors.
    """

    files: ModelFiles
    description: Description
    recipes: Mapping[str, Recipe] | None = None

    @property
    def name(self) -> str:
        return self.files.name

    def notes(self, plan: KernelPlan) -> tuple[Words, ...]:
        """What a user should know about the files, and about the form of a GGUF file's weights."""
        notes: tuple[Words, ...] = tuple(self.files.notes())
        gguf = self.files.gguf
        if gguf is None:
            return notes
        notes += tokenizer_notes(gguf.metadata)
        kind = next(iter(gguf.types), "F32")
        if kind in PLAIN:
            return notes
        has_experts = "num_experts_per_tok" in self.description.config
        return (*notes, _note_on_form(kind, plan.form, has_experts=has_experts))

    def config(self) -> Any:
        """The parsed config, to build the model from."""
        if self.files.gguf is not None:
            return parse_config(self.description)
        return AutoConfig.from_pretrained(self.files.path, trust_remote_code=False)

    def generation_settings(self) -> dict[str, Any]:
        """Those of generation_config.json, else of config.json, as in transformers."""
        if self.files.gguf is not None:
            return gguf_generation_settings(self.files.gguf)
        path = self.files.path / "generation_config.json"
        return read_json(path) if path.exists() else dict(self.description.config)

    def weights(
        self, plan: KernelPlan, on_read: OnRead, is_deferred: IsDeferred = nothing_deferred
    ) -> StoredWeights:
        """The weights, for a model with the kernels of `plan`.

        Args:
            on_read: is called with the size of each weight that is converted or unpacked.
            is_deferred: which weights transformers gets placeholders for.
        """
        if self.recipes is not None:
            return GgufWeights(self.recipes, plan, on_read, is_deferred)
        return SafetensorsWeights(self.files, plan, on_read, is_deferred)


def _note_on_form(kind: str, form: Form, *, has_experts: bool) -> Words:
    """In which form weights of one of GGUF's types run."""
    smaller = Setting("quantization", "int4")
    if form.quantization is None:
        unpacked = f"its {kind} weights are unpacked to {str(form.dtype).removeprefix('torch.')}"
        if kind in KINDS and form.device.type == "cpu" and form.ranks == 1 and not has_experts:
            return (f"{unpacked}; ", smaller, " keeps their 4 bits, and is faster")
        return unpacked
    if form.quantization == "int4" and kind in KINDS:
        return f"its {kind} weights keep their 4 bits"
    again = f"its {kind} weights are unpacked and quantized again, to"
    if form.quantization == "nested":
        planes = f"{again} two planes of 4 bits"
        better = " keeps their 4 bits, reads less and loses nothing"
        return (f"{planes}; ", smaller, better) if kind in KINDS else planes
    return f"{again} {'4' if form.quantization in ('int4', 'bnb-4bit') else '8'} bits"


def open_checkpoint(files: ModelFiles) -> Checkpoint:
    """Describes a model on disk.

    Raises:
        ModelError: a file is missing or damaged, or the model is of another kind.
    """
    if files.gguf is None:
        return Checkpoint(files, describe_directory(files.name, files.path))
    return Checkpoint(files, *describe_gguf(files.name, files.gguf))


def load_tokenizer(files: ModelFiles) -> Any:
    """Loads the tokenizer and tries it once.

    Raises:
        ModelError: it is missing or damaged.
    """
    if files.gguf is None:
        refuse_without_tokenizer(files.name, files.path)
    try:
        if files.gguf is not None:
            tokenizer = gguf_tokenizer(files.gguf.architecture, files.gguf.metadata)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                files.path, trust_remote_code=False, local_files_only=True
            )
        with silent_stderr():
            tokens = tokenizer("Some bad settings fail only when the tokenizer is used.").input_ids
    except MemoryError:
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise _tokenizer_error(files, error) from error
    if files.gguf is not None:
        return tokenizer
    # Some classes of transformers are built without the files of their vocabulary.
    if not (files.path / WHOLE).is_file() and not set(tokens) - set(tokenizer.all_special_ids):
        reason = ModelError(f"a {type(tokenizer).__name__} needs other files")
        raise _tokenizer_error(files, reason)
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {files.name} is a {type(tokenizer).__name__}, which d3 cannot use",
            "use a model with a tokenizer.json",
        )
    return tokenizer


def _tokenizer_error(files: ModelFiles, error: BaseException) -> ModelError:
    reason = one_line(error)
    if files.gguf is None:
        cause, hint = cause_of_failure(files.path, reason)
    else:
        cause, hint = reason, getattr(error, "hint", "") or OTHER_FORMAT
    return ModelError(f"the tokenizer of {files.name} cannot be loaded: {cause}", hint)
