"""The settings of an evaluation, by the names that lm-evaluation-harness' ``--model_args`` use.

Knows nothing of tasks, and nothing of lm-evaluation-harness itself.
"""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from d3cli.base.amounts import parse_limits
from d3cli.base.errors import Setting, UsageError, Words
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import Schedule
from d3cli.depth.units import UnitChoice
from d3cli.files.names import find_model
from d3cli.kernels.device import Dtype
from d3cli.kernels.quantization import Quantization
from d3cli.kernels.threads import pick_threads
from d3cli.model.form_choice import choose_form, lowers_depth
from d3cli.model.load import load_model
from d3cli.model.load_plan import LoadOptions, check_model
from d3cli.model.model import LoadedModel
from d3cli.model.placement import Placement
from d3cli.model.schedule_choice import choose_schedule

Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Switch = Literal["on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """Which model is evaluated, at which depth and in which form.

    Attributes:
        pretrained: an alias, a hub id, a directory or a GGUF file.
        alpha, start, core_first, core_last, units: the depth schedule, as `LoadedModel.schedule`
            takes them.
        dtype, quantization, device, max_memory, context, revision, threads, offline, force: how the
            model is loaded, as on the command line: "auto" is the calibrated form if there is one,
            else as stored, or nested for an alpha below 1 on a CPU.
        think: turns a reasoning model's thinking on or off; None keeps its template's default.
        seed: of sampled replies.
        batch_size: the most documents in one pass; "auto" is as many as have 2,048 positions on a
            CPU, or 16,384 on a GPU.
    """

    pretrained: str
    alpha: float | Literal["auto", "off"] = "auto"
    start: Count | None = None
    core_first: Count | None = None
    core_last: Count | None = None
    units: UnitChoice = "auto"
    dtype: Dtype = "auto"
    quantization: Literal["auto", "none"] | Quantization = "auto"
    device: str = "auto"
    max_memory: str | None = None
    context: Annotated[int, msgspec.Meta(ge=2)] | None = None
    revision: str | None = None
    threads: AtLeastOne | None = None
    offline: bool = False
    force: bool = False
    think: Switch | None = None
    seed: Count = 0
    batch_size: AtLeastOne | Literal["auto"] = "auto"

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "EvalSettings":
        """Settings by name; those that are None keep their defaults.

        Raises:
            UsageError: a name is unknown, the model is missing, or a value is impossible.
        """
        types = get_type_hints(cls, include_extras=True)
        if unknown := sorted(given.keys() - types.keys()):
            near = difflib.get_close_matches(unknown[0], types, 1)
            raise UsageError(
                f'there is no model argument "{unknown[0]}"',
                f"did you mean {near[0]}?" if near else f"there are {', '.join(types)}",
            )
        if not str(given.get("pretrained") or ""):
            raise UsageError("no model is named", ("name one: ", Setting("pretrained", "MODEL")))
        values = {name: value for name, value in given.items() if value is not None}
        found = cls(**{name: _value(name, value, types[name]) for name, value in values.items()})
        _ = found.limits  # refuses what cannot be read
        return found

    @property
    def limits(self) -> dict[str, int]:
        """`max_memory` as bytes by place; empty if it is not given."""
        return {} if self.max_memory is None else parse_limits(self.max_memory)

    @property
    def thinks(self) -> bool | None:
        return None if self.think is None else self.think == "on"


def _value(name: str, value: Any, kind: Any) -> Any:
    """A value of the type of its setting.

    Raises:
        UsageError: it has another type, or is out of range.
    """
    if name in ("pretrained", "revision", "device", "max_memory"):
        value = str(value)  # the harness makes numbers of digits
    try:
        # The harness reads numbers in --model_args, but leaves its own --batch_size a text.
        return msgspec.convert(value, kind, strict=name != "batch_size")
    except (msgspec.ValidationError, UnicodeEncodeError) as problem:  # also text that is not UTF-8
        words = str(problem).partition(" - at")[0]
        raise UsageError(
            (Setting(name), f" is {value!r}: {words[:1].lower()}{words[1:]}")
        ) from None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A loaded model, and the depth at which it is evaluated.

    Attributes:
        source: where the schedule comes from.
        notes: what the user should know about both.
    """

    model: LoadedModel
    schedule: Schedule
    source: Source
    notes: tuple[Words, ...]


def load_evaluated(settings: EvalSettings) -> Evaluated:
    """Loads the model and chooses its depth schedule, as `d3 generate` does.

    Raises:
        UsageError: the settings do not fit the model or this machine.
        D3Error: the model cannot be loaded; see `load_model`.
    """
    name, alpha, units = settings.pretrained, settings.alpha, settings.units
    form = choose_form(
        name,
        dtype=settings.dtype,
        quantization=settings.quantization,
        device=settings.device,
        revision=settings.revision,
        decays=lowers_depth(alpha, units),
    )
    kind = form.quantization
    options: LoadOptions = {
        "dtype": form.dtype,
        "quantization": None if kind == "auto" or kind == "none" else kind,
        "for_decay": form.for_decay,
        "device": settings.device,
        "max_memory": settings.limits,
        "context": settings.context,
        "force": settings.force,
        "full_depth_only": alpha == "off",
    }
    threads, busy = (settings.threads, "") if settings.threads else pick_threads()
    files = find_model(
        name,
        offline=settings.offline,
        revision=settings.revision,
        check=partial(check_model, **options),
    )
    placements: list[Placement] = []
    model = load_model(files, threads=threads, on_placement=placements.append, **options)
    placed = [f"placed on {line}" for one in placements for line in one.summary()]
    core = (settings.core_first, settings.core_last)
    choice = choose_schedule(
        model, alpha, settings.start, core, units, f"d3 calibrate {shlex.quote(name)}"
    )
    notes = (*([busy] if busy else []), *placed, *model.notes, *choice.notes)
    return Evaluated(model, choice.schedule, choice.source, notes)
