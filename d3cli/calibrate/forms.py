"""The forms of one model's weights: loaded one at a time, and which of them are worth a search.

A form is how the weights are held: as stored, or quantized while loading.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

from d3cli.calibrate.result import FormTried
from d3cli.depth.calibration_record import ModelKey
from d3cli.kernels.quantization import Quantization
from d3cli.model.model import LoadedModel

Load = Callable[[Quantization | None], LoadedModel]

# A form is not searched if a faster one loses at most this share of the target more.
NEARLY_AS_GOOD = 0.25
# Or if it is faster than another by less than this, which is within the noise of the clock.
NEARLY_AS_FAST = 0.95


class ModelForms:
    """A model whose forms take turns in memory.

    Args:
        first: the model as stored, or in the only form that there is.
        load: loads the model in another form, or as stored again.
        others: the forms to try beside the first one.
    """

    def __init__(
        self, first: LoadedModel, load: Load | None = None, others: Sequence[Quantization] = ()
    ) -> None:
        self.others, self._load = tuple(others), load
        self._model: LoadedModel | None = first
        self._loaded: Quantization | None = None
        self._keys: dict[Quantization | None, ModelKey | None] = {None: first.origin.key}

    @property
    def model(self) -> LoadedModel:
        """The model that is in memory."""
        assert self._model is not None
        return self._model

    def take(self, quantization: Quantization | None) -> LoadedModel:
        """The model in a form; the one in another form is let go first.

        Raises:
            D3Error: it cannot be loaded.
        """
        if self._model is None or self._loaded != quantization:
            assert self._load is not None
            self._model = None
            gc.collect()  # the gate and the layers that it wraps refer to each other
            self._model, self._loaded = self._load(quantization), quantization
            self._keys[quantization] = self._model.origin.key
        return self._model

    def key(self, quantization: Quantization | None) -> ModelKey | None:
        """What a calibration of a form that was loaded is stored under."""
        return self._keys[quantization]

    def in_words(self, quantization: Quantization | None) -> str:
        """A form that was loaded, in words: "bfloat16 int4"."""
        key = self.key(quantization)
        return key.form if key is not None else quantization or "as loaded"


def with_contenders(forms: Sequence[FormTried], target: float) -> list[FormTried]:
    """The forms, the fastest first; each says whether it is worth a search.

    Not worth it are forms that certainly lose more than the target, and those that another one
    dominates: it loses about as little, and at full depth it is already about as fast as this one
    without any low plane.
    """
    found: list[FormTried] = []
    for form in sorted(forms, key=lambda form: -form.full.candidate.speed):
        loss = form.full.drop.value
        better = [
            other.form
            for other in found
            if other.full.candidate.speed >= NEARLY_AS_FAST * form.reach
            and other.full.drop.high <= target
            and other.full.drop.value <= loss + NEARLY_AS_GOOD * target
        ]
        if form.full.drop.low > target:
            found.append(form)
        elif better:
            found.append(replace(form, dominated_by=better[0]))
        else:
            found.append(replace(form, searched=True))
    return found
