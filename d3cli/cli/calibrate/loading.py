"""The model to calibrate, in the forms of its weights that are to be tried."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from d3cli.base.errors import NotEnoughMemoryError
from d3cli.base.launch import launched
from d3cli.cli.loading import announce, load_announced
from d3cli.cli.model_options import DtypeName, ModelOptions, QuantizationName
from d3cli.cli.output import Output

if TYPE_CHECKING:
    from d3cli.calibrate.forms import ModelForms
    from d3cli.kernels.quantization import Quantization
    from d3cli.model.load import CheckText
    from d3cli.model.load_plan import LoadOptions
    from d3cli.model.model import LoadedModel
    from d3cli.scoring.documents import Document

# Documents are scored in one pass each, so for memory they are prompts.
LENGTHS: "LoadOptions" = {"prompt_tokens": 2048, "reply_tokens": 1}


def load_to_calibrate(
    output: Output, name: str, loading: ModelOptions, check_text: "CheckText | None"
) -> "ModelForms":
    """Loads the model, and says which forms of its weights are to be tried.

    With --quantization, or a dtype that torch's own kernels for fewer bits are not for, that is the
    only form; also under torchrun.
    """
    from d3cli.calibrate.forms import ModelForms, load_forms
    from d3cli.model.load import load_model

    def load_first(quantization: "Quantization | None") -> "LoadedModel":
        kind = QuantizationName(quantization or "none")
        form = replace(loading, quantization=kind)
        return load_announced(output, name, form, check_text, **LENGTHS)

    def load_again(quantization: "Quantization | None") -> "LoadedModel":
        options: LoadOptions = {**loading.load_options, **LENGTHS, "quantization": quantization}
        return load_model(name, offline=loading.offline, revision=loading.revision, **options)

    if loading.quantization is not QuantizationName.auto or launched() is not None:
        announce(output, name, loading)
        return ModelForms(load_announced(output, name, loading, check_text, **LENGTHS))
    announce(output, name, replace(loading, quantization=QuantizationName.none))
    if loading.dtype not in (DtypeName.auto, DtypeName.bfloat16):
        return ModelForms(load_first(None))
    forms = load_forms(load_first, load_again)
    if forms.why_not_as_stored:
        _say_against_nested(output, forms)
    elif forms.others:
        output.note(f"weights: tried as stored, and in {' and '.join(forms.others)}")
    return forms


def fit_to_score(output: Output, forms: "ModelForms", texts: Sequence["Document"]) -> "ModelForms":
    """The forms, without the model as stored if there is no memory to score the text with it.

    Raises:
        NotEnoughMemoryError: there is not enough with nested weights either, or these are not
            among the forms.
    """
    from d3cli.calibrate.evaluator import check_memory_to_score

    try:
        check_memory_to_score(forms.model, texts)
    except NotEnoughMemoryError as error:
        if "nested" not in forms.others:
            raise
        try:
            with output.progress.waiting("loading"):
                forms = forms.against_nested(error.message)
        except NotEnoughMemoryError:
            raise error from None
        _say_against_nested(output, forms)
        check_memory_to_score(forms.model, texts)
    return forms


def _say_against_nested(output: Output, forms: "ModelForms") -> None:
    output.note(
        f"the model as stored does not fit: {forms.why_not_as_stored}; so everything is compared "
        "with nested weights at full depth, and what nesting costs is outside the target"
    )
    output.note(f"weights: tried nested, and in {' and '.join(forms.others)}")
