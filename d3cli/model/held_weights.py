"""What a checkpoint's weights take in memory: as they are, converted, quantized or packed.

Foretold from their headers. Knows nothing of caches, or of how much memory there is.
"""

from typing import Any

import torch
from transformers import AutoConfig

from d3cli.base.errors import ModelError, one_line
from d3cli.files.json_files import BROKEN_FILES
from d3cli.files.safetensors import REOPEN_AFTER, Description, TensorInfo
from d3cli.kernels.bnb_linear import (
    Quantization,
    fits_cpu_kernel,
    is_converted,
    is_quantized_while_loading,
    quantized_bytes,
)
from d3cli.kernels.int8_linear import MULTIPLE, HeadChoice
from d3cli.kernels.packed_linear import can_pack

# bitsandbytes' temporaries while it brings a 4-bit weight into the order of the CPU's kernel, in
# bytes a weight; and what quantizing takes in any case.
REORDERING, QUANTIZING = 6.5, 32 << 20
# The LM head's least share of what a full-depth step reads, to be worth 8 bits.
LEAST_HEAD = 1 / 16


class HeldWeights:
    """The weights of a model as these options load it, in bytes.

    Args:
        quantize_head: None is "auto" where the layers are in 4 bits, else "off".

    Attributes:
        config: with transformers' own names for its fields, and its defaults.
        head_in_8_bits: whether the LM head is quantized: on a CPU, and where it is worth it.

    Raises:
        ModelError: the config makes no sense.
    """

    def __init__(
        self,
        model: Description,
        dtype: torch.dtype,
        quantization: Quantization | None,
        quantize_head: HeadChoice | None,
        device: torch.device,
    ) -> None:
        self.config = _parse_config(model)
        self._model, self._dtype, self._device = model, dtype, device
        self._quantization, self._choice = quantization, quantize_head
        self._packs = can_pack(dtype, device)
        try:
            self.head_in_8_bits = self._shrinks_head()
        except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
            raise no_sense(model, error) from error

    def _shrinks_head(self) -> bool:
        stored = self._model.config.get("quantization_config")
        in_4_bits = self._quantization == "bnb-4bit" or (
            isinstance(stored, dict) and bool(stored.get("load_in_4bit"))
        )
        wanted = in_4_bits if self._choice is None else self._choice == "auto"
        # In float16 the kernel's scales would be too coarse for small rows.
        if not wanted or self._device.type != "cpu" or self._dtype == torch.float16:
            return False
        if self._head_inputs % MULTIPLE:
            return False
        layers = sum(self._held(t) for t in self._model.tensors if t.layer is not None)
        return self._head >= LEAST_HEAD * (self._head + layers)

    @property
    def total(self) -> int:
        """All weights, once they are loaded."""
        return sum(map(self._held, self._model.tensors)) + self._beside_the_files

    @property
    def while_loading(self) -> int:
        """What is held beside them for a moment, as one after the other is converted or packed."""
        converted = [t for t in self._model.tensors if self._is_converted(t)]
        tensors = self._model.tensors if self._packs else converted
        in_layers = max((t.nbytes for t in tensors if t.layer is not None), default=0)
        # Before the LM head gets another form, so its copy is not there yet.
        outside = max((t.nbytes for t in converted if t.layer is None), default=0)
        outside -= max(0, self._beside_the_files)
        if self._quantization is not None:
            # The LM head is packed when the layers are there already.
            head = self._head if self._packs and not self.head_in_8_bits else 0
            return max(head, outside, self._reordering, QUANTIZING)
        return max(in_layers, outside) + REOPEN_AFTER if converted or in_layers else 0

    @property
    def _reordering(self) -> int:
        if self._quantization != "bnb-4bit" or self._device.type != "cpu":
            return 0
        quantized = [t for t in self._model.tensors if self._is_quantized(t)]
        return int(REORDERING * max((t.numel for t in quantized), default=0))

    @property
    def to_convert(self) -> int:
        """What is read while loading, to be converted, quantized or packed: twice what is both."""
        converted = sum(t.nbytes for t in self._model.tensors if self._is_converted(t))
        packed = self._packs or self._quantization == "bnb-4bit"
        return converted + packed * sum(t.nbytes for t in self._model.tensors if len(t.shape) == 2)

    @property
    def _head_inputs(self) -> int:
        """OPT may project its states to fewer before the LM head."""
        return int(getattr(self.config, "word_embed_proj_dim", None) or self.config.hidden_size)

    @property
    def _head(self) -> int:
        """Bytes of the LM head as it is."""
        return int(self.config.vocab_size * self._head_inputs * self._dtype.itemsize)

    @property
    def _beside_the_files(self) -> int:
        """Bytes of embeddings and LM head beyond those of their tensors in the files; or fewer.

        A head of another form is a copy; embeddings that stay mapped take no memory, since single
        rows of them are read.
        """
        taken = self._head
        if self.head_in_8_bits:
            taken = taken // self._dtype.itemsize + self.config.vocab_size * self._dtype.itemsize
        table = (self.config.vocab_size, self._head_inputs)
        tables = [t for t in self._model.tensors if t.shape == table]
        mapped = self._device.type == "cpu" and not any(map(self._is_converted, tables))
        if self.config.tie_word_embeddings:
            if not self.head_in_8_bits and not self._packs:
                return 0  # embeddings and head are one
            return int(taken - self._head if mapped else taken)
        return int(taken - self._head - (self._head if mapped and len(tables) == 2 else 0))

    def _is_converted(self, tensor: TensorInfo) -> bool:
        return is_converted(tensor, self._dtype, self._quantization)

    def _is_quantized(self, tensor: TensorInfo) -> bool:
        on_cpu_in_4_bits = self._device.type == "cpu" and self._quantization == "bnb-4bit"
        return is_quantized_while_loading(tensor, self._quantization) and (
            not on_cpu_in_4_bits or fits_cpu_kernel(*tensor.shape)
        )

    def _held(self, tensor: TensorInfo) -> int:
        """Bytes of one tensor."""
        if tensor.name.endswith("lm_head.weight") and self._model.config.get("tie_word_embeddings"):
            return 0  # a second copy of the embeddings, which is not read
        if self._quantization is not None and self._is_quantized(tensor):
            return quantized_bytes(tensor.numel, self._quantization)
        return tensor.numel * self._dtype.itemsize if tensor.is_float else tensor.nbytes


def no_sense(model: Description, error: Exception) -> ModelError:
    """For a config whose values contradict each other, or are of the wrong kind."""
    return ModelError(
        f"the config.json of {model.name} makes no sense: {one_line(error)}", BROKEN_FILES
    )


def _parse_config(model: Description) -> Any:
    try:
        return AutoConfig.for_model(**model.config)
    except MemoryError:
        raise
    except Exception as error:  # transformers raises every kind for odd values
        raise ModelError(
            f"the config.json of {model.name} cannot be read: {one_line(error)}", BROKEN_FILES
        ) from error
