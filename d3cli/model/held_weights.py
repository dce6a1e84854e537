"""How much memory a checkpoint's weights take: as stored, converted, quantized or packed.

Predicted from the headers of its files. Knows nothing of caches, or of how much memory is free.
"""

from typing import Any

from d3cli.files.lazy_weights import REOPEN_AFTER
from d3cli.files.safetensors import Description, TensorInfo
from d3cli.kernels.choices import KernelChoices
from d3cli.kernels.measured_shapes import measured_shapes
from d3cli.kernels.plan import Form, KernelPlan, plan_kernels
from d3cli.kernels.quantization import OWN_KINDS
from d3cli.model.config import config_errors

# Bytes for each weight that bitsandbytes takes while it reorders a 4-bit weight for its CPU kernel,
# and bytes that quantizing takes in any case, for bitsandbytes and for torch's kernels.
REORDERING, QUANTIZING, ROUNDING = 6.5, 32 << 20, 24 << 20
# Bytes that unpacking a GGUF file's weights takes, in four threads at once.
UNPACKING = 48 << 20


def plan_for(
    model: Description, config: Any, form: Form, choices: KernelChoices | None = None
) -> KernelPlan:
    """The kernels for a model.

    Args:
        config: its parsed config.
        choices: measures what is not known yet. By default nothing is measured: weights with
            unknown products count as packed, and the LM head as bfloat16, which takes the most
            memory.

    Raises:
        ModelError: the config makes no sense.
    """
    with config_errors(model):
        head = head_shape(config)
        if choices is None:
            return plan_kernels(model, head, form)
        plan = plan_kernels(model, head, form, choices.expected, choices.expected_head_in_8_bits)
        choices.prepare(measured_shapes(model, head, plan))
        return plan_kernels(model, head, form, choices.current, choices.head_in_8_bits)


def head_shape(config: Any) -> tuple[int, int]:
    """The shape of the LM head, ``(vocabulary, inputs)``."""
    # OPT may project its states to fewer before the LM head.
    inputs = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
    return config.vocab_size, int(inputs)


class HeldWeights:
    """The weights of a model as a plan loads them, in bytes.

    Args:
        config: the model's parsed config.
    """

    def __init__(self, model: Description, config: Any, plan: KernelPlan) -> None:
        self._model, self._config, self._plan = model, config, plan

    @property
    def total(self) -> int:
        """All weights, once they are loaded."""
        return sum(map(self._held, self._model.tensors)) + self._beside_the_files

    def of_rank(self, ranks: int) -> int:
        """The weights that each of so many ranks holds: of the embeddings, all of them do."""
        tied = getattr(self._config, "tie_word_embeddings", False)
        split = sum(self.by_layer) + (0 if tied else self._head)
        return self.total - split + split // ranks

    @property
    def by_layer(self) -> tuple[int, ...]:
        """The weights of each layer, once they are loaded."""
        held: dict[int, int] = {}
        for tensor in self._model.tensors:
            if tensor.layer is not None:
                held[tensor.layer] = held.get(tensor.layer, 0) + self._held(tensor)
        return tuple(held[layer] for layer in sorted(held))

    @property
    def while_loading(self) -> int:
        """The most that converting or packing a weight takes for a moment, beside the weights."""
        if self._model.is_gguf:
            return self._while_unpacking
        plan, tensors = self._plan, self._model.tensors
        converted = [t for t in tensors if plan.converts(t)]
        read = [t for t in tensors if plan.converts(t) or plan.copies(t)]
        in_layers = max((t.nbytes for t in read if t.layer is not None), default=0)
        in_layers = max(in_layers, self._largest_joint)
        packed_head = self._head_to_pack
        # These are read before the LM head is packed or quantized, so its copy does not exist yet.
        outside = max((t.nbytes for t in converted if t.layer is None), default=0)
        outside -= max(0, self._beside_the_files)
        if plan.form.quantization in OWN_KINDS:
            return max(packed_head, outside, in_layers + REOPEN_AFTER + ROUNDING)
        if plan.form.quantization is not None:
            # The LM head is packed after the layers are loaded.
            return max(packed_head, outside, self._reordering, QUANTIZING)
        return max(in_layers, outside) + REOPEN_AFTER if converted or in_layers else 0

    @property
    def _while_unpacking(self) -> int:
        """As `while_loading`, for weights that are unpacked one by one and packed at once."""
        plan, item = self._plan, self._plan.form.dtype.itemsize
        matrices = [t for t in self._model.tensors if t.layer is not None and len(t.shape) == 2]
        copied = [t for t in matrices if plan.quantized is not None or plan.copies(t)]
        largest = max((t.numel * item for t in copied), default=0)
        largest = max(largest, self._largest_joint)
        if plan.packs_head:
            # It is packed first, while the layers do not take memory yet.
            largest = max(largest, self._head - sum(map(self._held, matrices)))
        elif plan.head_in_8_bits:
            largest = max(largest, self._head_to_pack - UNPACKING)
        return max(largest + UNPACKING, self._reordering)

    @property
    def _largest_joint(self) -> int:
        """Bytes of the largest weight that several are copied into."""
        plan = self._plan
        joints = {plan.joints[t.name] for t in self._model.tensors if t.name in plan.joints}
        joined = [shape for shape in joints if plan.joins(*shape)]
        return max((o * i * plan.form.dtype.itemsize for o, i in joined), default=0)

    @property
    def _reordering(self) -> int:
        if not self._plan.form.in_4_bits_on_cpu:
            return 0
        quantized = (t.numel for t in self._model.tensors if self._plan.quantizes(t))
        return int(REORDERING * max(quantized, default=0))

    @property
    def to_convert(self) -> int:
        """Bytes to read while loading that are converted, quantized, packed or joined.

        A weight that is converted and packed or joined counts twice.
        """
        model, plan = self._model, self._plan
        if model.is_gguf:
            item = plan.form.dtype.itemsize
            return sum(
                t.numel * item * (1 + self._is_copied(t))
                for t in model.tensors
                if self._is_copied(t) or plan.converts(t)
            )
        converted = sum(t.nbytes for t in model.tensors if plan.converts(t))
        return converted + sum(t.nbytes for t in model.tensors if self._is_copied(t))

    def _is_copied(self, tensor: TensorInfo) -> bool:
        """Whether a weight is packed or joined after it was read."""
        plan = self._plan
        if tensor.layer is None:
            return plan.packs_head and tensor.shape == head_shape(self._config)
        in_4_bits = plan.form.quantization == "bnb-4bit" and plan.quantizes(tensor)
        return in_4_bits or plan.copies(tensor)

    @property
    def _head(self) -> int:
        """Bytes of the LM head in the model's dtype."""
        vocabulary, inputs = head_shape(self._config)
        return vocabulary * inputs * self._plan.form.dtype.itemsize

    @property
    def _head_to_pack(self) -> int:
        """Bytes that packing the LM head takes, or may take in 8 bits, before it is let go."""
        if self._plan.head_in_8_bits:
            return self._plan.head_bytes(*head_shape(self._config))
        return self._head if self._plan.packs_head else 0

    @property
    def _beside_the_files(self) -> int:
        """Bytes of embeddings and LM head, less those of their tensors in the files.

        A packed or quantized head is a copy. Embeddings that stay mapped take no memory, since only
        single rows are read, so the result may be negative.
        """
        plan, shape = self._plan, head_shape(self._config)
        taken = plan.head_bytes(*shape)
        tables = [t for t in self._model.tensors if t.shape == shape]
        mapped = plan.form.device.type == "cpu" and not any(map(plan.converts, tables))
        if self._config.tie_word_embeddings:
            if not plan.head_in_8_bits and not plan.packs_head:
                return 0  # embeddings and head are the same tensor
            return taken - self._head if mapped else taken
        return taken - self._head - (self._head if mapped and len(tables) == 2 else 0)

    def _held(self, tensor: TensorInfo) -> int:
        """Bytes of one tensor."""
        if tensor.name.endswith("lm_head.weight") and self._model.config.get("tie_word_embeddings"):
            return 0  # a second copy of the embeddings, which is never read
        return self._plan.held_bytes(tensor)
