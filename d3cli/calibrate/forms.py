"""The forms of one model's weights: loaded one at a time, and which of them are worth a search.

A form is how the weights are held: as stored, or quantized while loading.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from d3cli.base.errors import ModelError, NotEnoughMemoryError, UsageError
from d3cli.calibrate.alternatives import FORMS, forms_to_try
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
        first: the model in the form that the others are compared with: as stored where that fits
            into memory. Or the model in the only form that there is.
        load: loads the model in another form, or in the first one again.
        others: the forms to try beside the first one.
        why_not_as_stored: why the first one is not the model as stored, if d3 decided that.

    Attributes:
        reference: the first form.
    """

    def __init__(
        self,
        first: LoadedModel,
        load: Load | None = None,
        others: Sequence[Quantization] = (),
        why_not_as_stored: str = "",
    ) -> None:
        self.others, self.why_not_as_stored, self._load = tuple(others), why_not_as_stored, load
        key = first.origin.key
        quantization = None if key is None else key.quantization
        self.reference = cast("Quantization | None", quantization)
        self._model: LoadedModel | None = first
        self._loaded = self.reference
        self._keys: dict[Quantization | None, ModelKey | None] = {self.reference: key}

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

    def against_nested(self, why: str) -> "ModelForms":
        """The same without the model as stored: nested weights take its place.

        Args:
            why: it takes too much memory.
        """
        nested = self.take("nested")
        others = [one for one in self.others if one != "nested"]
        return ModelForms(nested, self._load, others, why)

    def key(self, quantization: Quantization | None) -> ModelKey | None:
        """What a calibration of a form that was loaded is stored under."""
        return self._keys[quantization]

    def in_words(self, quantization: Quantization | None) -> str:
        """A form that was loaded, in words: "bfloat16 int4"."""
        key = self.key(quantization)
        return key.form if key is not None else quantization or "as loaded"


def load_forms(first: Load, again: Load | None = None) -> ModelForms:
    """Loads the model as stored, and finds the forms to try beside it.

    Where it does not fit into memory by the prediction, nested weights take its place: they are
    loaded, and the others are compared with them.

    Args:
        first: loads the first form.
        again: loads forms later; by default `first`.

    Raises:
        NotEnoughMemoryError: nested weights do not fit either, or there are none of this model.
        D3Error: it cannot be loaded.
    """
    again = again or first
    try:
        stored = first(None)
    except NotEnoughMemoryError as error:
        try:
            nested = first("nested")
        except (NotEnoughMemoryError, ModelError, UsageError):
            raise error from None  # it names what does fit
        others = [one for one in FORMS if one != "nested"]
        return ModelForms(nested, again, others, error.message)
    return ModelForms(stored, again, forms_to_try(stored))


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
