"""Which kinds of units a calibration searches in a form of a model."""

from d3cli.base.errors import Setting, UsageError
from d3cli.calibrate.forms import ModelForms
from d3cli.calibrate.unit_order import SearchKind
from d3cli.depth.units import UnitChoice
from d3cli.model.model import LoadedModel


def kinds_of(model: LoadedModel, units: UnitChoice) -> list[SearchKind]:
    """The kinds of units to search in the form of a model that is loaded."""
    family = model.gate.family
    if not family.can_skip or model.num_layers < 3:
        raise UsageError(
            f"{model.name} runs at full depth only, so there is nothing to calibrate",
            "docs/models.md lists the models that can skip layers",
        )
    nested = model.weight_bytes.is_nested
    if units == "auto":
        if nested:
            return ["mixed"]
        return ["layer", "sublayer"] if family.has_sublayers else ["layer"]
    if units == "sublayer" and not family.has_sublayers:
        raise UsageError(
            f"the layers of {model.name} have no separate sublayers",
            ("use ", Setting("units", "layer")),
        )
    return [units] if nested or units != "plane" else []


def check_planes(forms: ModelForms, units: UnitChoice) -> None:
    """Raises UsageError if low planes are asked for and no form has them."""
    if units == "plane" and not (forms.model.weight_bytes.is_nested or "nested" in forms.others):
        raise UsageError(
            f"the weights of {forms.model.name} are not nested, so they have no low planes",
            ("use ", Setting("quantization", "nested")),
        )
