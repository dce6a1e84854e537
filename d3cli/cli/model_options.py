"""The options that say how a model is loaded, shared by all commands that load one."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from d3cli.base.amounts import parse_limits

if TYPE_CHECKING:
    from d3cli.kernels.quantization import Quantization
    from d3cli.model.load_plan import LoadOptions

MODEL = "Model"
MODEL_HELP = (
    "An alias, a hub id, a directory or a GGUF file; d3 models lists them. Default: the configured "
    "model, else the built-in one"
)


Revision = Annotated[
    str | None,
    typer.Option(
        metavar="REV",
        rich_help_panel=MODEL,
        help="A branch, a tag or a commit of a model on the hub. Default: its default branch.",
    ),
]


class DtypeName(StrEnum):
    """The number type that the model computes in."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class QuantizationName(StrEnum):
    """How weights are stored in memory."""

    auto = "auto"
    none = "none"
    int8 = "int8"
    int4 = "int4"
    nested = "nested"
    bnb_4bit = "bnb-4bit"
    bnb_8bit = "bnb-8bit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How a model is loaded."""

    dtype: Annotated[
        DtypeName,
        typer.Option(
            envvar="D3_DTYPE",
            rich_help_panel=MODEL,
            help="auto: bfloat16 if the GPU computes in it, if it is no slower than float32 on "
            "this processor, or with int8, int4 and nested weights; else float32.",
        ),
    ] = DtypeName.auto
    quantization: Annotated[
        QuantizationName,
        typer.Option(
            envvar="D3_QUANTIZATION",
            rich_help_panel=MODEL,
            help="Store the layers' weights in fewer bits, which saves memory and is faster. int8, "
            "int4 and nested (two planes of 4 bits, of which decay can drop one) run on any CPU; "
            "bnb-4bit and bnb-8bit need bitsandbytes, and are for GPUs. none: as the model has "
            "them. auto: what d3 calibrate has chosen for this model, else none, or nested for an "
            "--alpha below 1 on a CPU; d3 calibrate tries them itself.",
        ),
    ] = QuantizationName.auto
    device: Annotated[
        str,
        typer.Option(
            envvar="D3_DEVICE",
            metavar="auto|cpu|cuda[:N]",
            rich_help_panel=MODEL,
            help="Where to run. auto: the first GPU that holds the model; several, and main memory "
            "and the disk for the layers that do not fit, if no GPU does; the CPU without a GPU.",
        ),
    ] = "auto"
    max_memory: Annotated[
        str | None,
        typer.Option(
            envvar="D3_MAX_MEMORY",
            metavar="PLACE=SIZE,…",
            rich_help_panel=MODEL,
            help="The most memory to use on a GPU (by its number), on the cpu and on the disk: "
            "0=10GiB,cpu=32GiB. Layers beyond it lie in the next place (docs/scaling.md). Default: "
            "what is free, and without a GPU no disk.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            envvar="D3_THREADS",
            min=1,
            max=1024,
            metavar="N",
            rich_help_panel=MODEL,
            help="CPU threads. Default: the number of physical cores, or fewer if the machine is "
            "busy.",
        ),
    ] = None
    context: Annotated[
        int | None,
        typer.Option(
            envvar="D3_CONTEXT",
            min=2,
            metavar="N",
            rich_help_panel=MODEL,
            help="Tokens that the model holds, prompt and reply together. Default: what its "
            "config says, times the factor of rope scaling that was added later.",
        ),
    ] = None
    revision: Revision = None
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            envvar="D3_OFFLINE",
            rich_help_panel=MODEL,
            help="Never use the network.",
        ),
    ] = False
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            rich_help_panel=MODEL,
            help="Load the model even if it is predicted not to fit into memory.",
        ),
    ] = False

    @property
    def load_options(self) -> "LoadOptions":
        """These options as `load_model` takes them; "auto" has been resolved, or means none."""
        return {
            "dtype": self.dtype.value,
            "quantization": self._quantization,
            "device": self.device,
            "context": self.context,
            "max_memory": self.limits,
            "force": self.force,
        }

    @property
    def limits(self) -> dict[str, int]:
        """`max_memory` as bytes by place; empty if it is not given.

        Raises:
            UsageError: it cannot be read.
        """
        return {} if self.max_memory is None else parse_limits(self.max_memory)

    @property
    def _quantization(self) -> "Quantization | None":
        name: Quantization | Literal["auto", "none"] = self.quantization.value
        return None if name == "auto" or name == "none" else name
