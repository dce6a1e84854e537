"""Options that several commands share, each written once."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DEPTH, SAMPLING, INPUT, MODEL, OUTPUT = "Depth", "Sampling", "Input", "Model", "Output"


class DtypeName(StrEnum):
    """What the weights are computed in."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class QuantizationName(StrEnum):
    """How weights are stored in memory."""

    bnb_4bit = "bnb-4bit"
    bnb_8bit = "bnb-8bit"


class HeadName(StrEnum):
    """Whether the LM head is quantized."""

    auto = "auto"
    off = "off"


class Think(StrEnum):
    """Whether a reasoning model thinks before it answers."""

    on = "on"
    off = "off"


def was_typed(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, not in the environment or config.toml."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


MODEL_HELP = (
    "An alias, a hub id or a directory; d3 models lists what is there. Default: the configured "
    "model, else the built-in one"
)
Alpha = Annotated[
    str,
    typer.Option(
        envvar="D3_ALPHA",
        metavar="FLOAT|auto|off",
        rich_help_panel=DEPTH,
        help="Depth decay per token: 0.999 is gentle, 0.99 steep. auto: the model's own "
        "calibration, else a cautious default. off: full depth.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        envvar="D3_START",
        metavar="N|N%",
        rich_help_panel=DEPTH,
        help="Full-depth tokens before the decay begins, or a share of --max-tokens.",
    ),
]
CoreFirst = Annotated[
    int | None,
    typer.Option(
        envvar="D3_CORE_FIRST",
        min=0,
        metavar="N",
        rich_help_panel=DEPTH,
        help="First layers that are never dropped.",
    ),
]
CoreLast = Annotated[
    int | None,
    typer.Option(
        envvar="D3_CORE_LAST",
        min=0,
        metavar="N",
        rich_help_panel=DEPTH,
        help="Last layers that are never dropped.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "--temp",
        envvar="D3_TEMPERATURE",
        metavar="FLOAT",
        rich_help_panel=SAMPLING,
        help="0 is greedy. Default: what the checkpoint says, else greedy; 1 where --top-p, "
        "--top-k or --min-p asks for sampling.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        envvar="D3_TOP_P",
        metavar="FLOAT",
        rich_help_panel=SAMPLING,
        help="Keep the likeliest tokens that together reach this probability.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        envvar="D3_TOP_K",
        metavar="N",
        rich_help_panel=SAMPLING,
        help="Keep the N likeliest tokens; 0 keeps all.",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        envvar="D3_MIN_P",
        metavar="FLOAT",
        rich_help_panel=SAMPLING,
        help="Drop tokens below this share of the likeliest one's probability.",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        envvar="D3_REPETITION_PENALTY",
        metavar="FLOAT",
        rich_help_panel=SAMPLING,
        help="Above 1 makes tokens already seen less likely.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        envvar="D3_SEED",
        metavar="N",
        rich_help_panel=SAMPLING,
        help="Makes sampling repeatable.",
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        envvar="D3_MAX_TOKENS",
        min=1,
        metavar="N",
        rich_help_panel=SAMPLING,
        help="Longest reply. Default: what the model's context leaves.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        rich_help_panel=SAMPLING,
        help="End the reply before this text; may be repeated.",
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        rich_help_panel=INPUT,
        help="The prompt; the argument is then the model.",
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=INPUT, help="Read the prompt from a file."),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        "-s",
        envvar="D3_SYSTEM",
        metavar="TEXT",
        rich_help_panel=INPUT,
        help="A system prompt.",
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=INPUT,
        help="A Jinja chat template to use instead of the model's own.",
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw",
        rich_help_panel=INPUT,
        help="No chat template: the prompt as it is, and special tokens written in it are parsed.",
    ),
]
ThinkSwitch = Annotated[
    Think | None,
    typer.Option(
        rich_help_panel=INPUT,
        help="Thinking of a reasoning model, where its chat template has the switch.",
    ),
]
Dtype = Annotated[
    DtypeName,
    typer.Option(
        envvar="D3_DTYPE",
        rich_help_panel=MODEL,
        help="auto: bfloat16 where the processor or GPU has it, else float32.",
    ),
]
QuantizationOption = Annotated[
    QuantizationName | None,
    typer.Option(
        "--quantization",
        envvar="D3_QUANTIZATION",
        rich_help_panel=MODEL,
        help="Quantize the layers while loading, by bitsandbytes: less memory, and in 4 bits "
        "usually more speed.",
    ),
]
QuantizeHead = Annotated[
    HeadName | None,
    typer.Option(
        envvar="D3_QUANTIZE_HEAD",
        rich_help_panel=MODEL,
        help="The LM head in 8 bits, on a CPU, where it is a 16th or more of what a token reads. "
        "Default: auto with 4-bit layers, else off.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        envvar="D3_DEVICE",
        metavar="auto|cpu|cuda[:N]",
        rich_help_panel=MODEL,
        help="Where to run.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        envvar="D3_THREADS",
        min=1,
        max=1024,
        metavar="N",
        rich_help_panel=MODEL,
        help="CPU threads. Default: the physical cores there are, or fewer where the machine is "
        "busy and that is faster.",
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar="D3_OFFLINE",
        rich_help_panel=MODEL,
        help="Never touch the network.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        rich_help_panel=MODEL,
        help="Load the model even where memory is predicted to be too short.",
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        envvar="D3_VERIFY",
        rich_help_panel=MODEL,
        help="First compare all of the model's files with the hub's checksums.",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=OUTPUT, help="Print one JSON object instead of the text."
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="D3_DEBUG",
        rich_help_panel=OUTPUT,
        # The environment, because the error that it is for may come before any command runs.
        callback=lambda on: os.environ.__setitem__("D3_DEBUG", "1") if on else None,
        help="Show a traceback with an error.",
    ),
]

# What config.toml may set, beside `model` and `[aliases]`: how a model is loaded, and how it runs.
OF_MODELS = frozenset(
    {"dtype", "quantization", "quantize_head", "device", "threads", "offline", "verify"}
)
OF_CHAT = frozenset({"keys", "on_overflow"})
CONFIGURABLE = (
    OF_MODELS
    | OF_CHAT
    | frozenset(
        {
            "alpha",
            "start",
            "core_first",
            "core_last",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "seed",
            "max_tokens",
            "system",
        }
    )
)
