"""The form in which a model is loaded, as options, and as words that follow the model's name."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from d3cli.base.launch import launched
from d3cli.cli.model_options import DtypeName, ModelOptions, QuantizationName
from d3cli.model import form_choice

if TYPE_CHECKING:
    from d3cli.model.load_plan import LoadOptions

NESTED = ", nested for --alpha: 9 bits that become 4.5 (--quantization none keeps its weights)"


@dataclass(frozen=True, slots=True)
class ChosenForm:
    """In which form a model is loaded.

    Attributes:
        options: the user's; with a calibrated form in place of "auto".
        for_decay: whether weights shall be nested if they can be.
        words: what follows the model's name where that is said; empty if the user chose the form.
    """

    options: ModelOptions
    for_decay: bool = False
    words: str = ""

    @property
    def load_options(self) -> "LoadOptions":
        """The options as `load_model` takes them."""
        found = self.options.load_options
        if self.for_decay:
            found["for_decay"] = True
        return found


def choose_form(name: str, options: ModelOptions, *, decays: bool = False) -> ChosenForm:
    """The form that `form_choice.choose_form` finds for these options.

    Ranks under torchrun hold the weights as they are stored.
    """
    if launched() is not None and options.quantization is QuantizationName.auto:
        options = replace(options, quantization=QuantizationName.none)
    found = form_choice.choose_form(
        name,
        dtype=options.dtype.value,
        quantization=options.quantization.value,
        device=options.device,
        revision=options.revision,
        decays=decays and options.max_memory is None,  # nested weights cannot be split
    )
    if not found.is_calibrated:
        return ChosenForm(options, found.for_decay, NESTED if found.for_decay else "")
    form = replace(
        options, dtype=DtypeName(found.dtype), quantization=QuantizationName(found.quantization)
    )
    return ChosenForm(form, words=f", in {found.quantization} as calibrated")
