"""The options that commands share, in groups: each option is written once.

A group is a frozen dataclass whose fields are Typer options; a command's settings are made of
groups (`d3cli.cli.command_line`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from d3cli.cli.draft_options import DraftOptions
from d3cli.cli.model_options import ModelOptions
from d3cli.cli.prompt_options import TemplateOptions

DEPTH, SAMPLING, OUTPUT = "Depth", "Sampling", "Output"


def no_limit(value: int | None) -> int | None:
    """A limit of a reply as typed: -1 is none.

    Raises:
        typer.BadParameter: no reply has that many tokens.
    """
    if value == -1:
        return None
    if value is not None and value < 1:
        raise typer.BadParameter(f"{value} is not at least 1, or -1 for no limit")
    return value


def random_if_negative(value: int | None) -> int | None:
    """A seed as typed: -1 is a new one for each reply."""
    return None if value == -1 else value


def all_if_negative(value: int | None) -> int | None:
    """A top-k as typed: -1 keeps all tokens, as 0 does."""
    return 0 if value == -1 else value


class UnitsName(StrEnum):
    """What may be dropped."""

    auto = "auto"
    layer = "layer"
    sublayer = "sublayer"
    plane = "plane"


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthOptions:
    """Which layers run, as typed: `d3cli.cli.depth` reads the texts."""

    alpha: Annotated[
        str,
        typer.Option(
            envvar="D3_ALPHA",
            metavar="FLOAT|auto|off",
            rich_help_panel=DEPTH,
            help="Depth decay per token: 0.999 is gentle, 0.99 is steep. auto: the model's "
            "calibration, else full depth. off: full depth.",
        ),
    ] = "auto"
    start: Annotated[
        str | None,
        typer.Option(
            envvar="D3_START",
            metavar="N|N%",
            rich_help_panel=DEPTH,
            help="Tokens at full depth before the decay begins, or a share of --max-tokens.",
        ),
    ] = None
    core_first: Annotated[
        int | None,
        typer.Option(
            envvar="D3_CORE_FIRST",
            min=0,
            metavar="N",
            rich_help_panel=DEPTH,
            help="Number of first layers that are never dropped. They may lose low planes.",
        ),
    ] = None
    core_last: Annotated[
        int | None,
        typer.Option(
            envvar="D3_CORE_LAST",
            min=0,
            metavar="N",
            rich_help_panel=DEPTH,
            help="Number of last layers that are never dropped. They may lose low planes.",
        ),
    ] = None
    units: Annotated[
        UnitsName,
        typer.Option(
            envvar="D3_UNITS",
            rich_help_panel=DEPTH,
            help="What an alpha drops from a model that is not calibrated, in the order that the "
            "prompt decides: whole layers, sublayers, or the low planes of nested weights. auto: "
            "low planes if there are any, else layers.",
        ),
    ] = UnitsName.auto


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen, and where a reply ends. None is the checkpoint's own setting."""

    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "--temp",
            envvar="D3_TEMPERATURE",
            metavar="FLOAT",
            rich_help_panel=SAMPLING,
            help="0 is greedy. Default: the checkpoint's setting, else greedy; 1 if --top-p, "
            "--top-k or --min-p asks for sampling.",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            envvar="D3_TOP_P",
            metavar="FLOAT",
            rich_help_panel=SAMPLING,
            help="Keep the most likely tokens that together reach this probability.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            envvar="D3_TOP_K",
            callback=all_if_negative,
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Keep the N most likely tokens; 0 or -1 keeps all.",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            envvar="D3_MIN_P",
            metavar="FLOAT",
            rich_help_panel=SAMPLING,
            help="Drop tokens below this share of the most likely token's probability.",
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            envvar="D3_REPETITION_PENALTY",
            metavar="FLOAT",
            rich_help_panel=SAMPLING,
            help="Above 1 makes tokens that have appeared less likely.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            envvar="D3_SEED",
            callback=random_if_negative,
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Makes sampling repeatable; -1 draws a new seed for each reply.",
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            envvar="D3_MAX_TOKENS",
            callback=no_limit,
            metavar="N",
            rich_help_panel=SAMPLING,
            help="Maximum length of the reply. Default, and -1: what the model's context leaves.",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=SAMPLING,
            help="End the reply before this text, or at this special token; may be repeated. "
            r"`\n`, `\t`, `\r` and `\\` are read as a new line, a tab, a carriage return and `\`.",
        ),
    ] = None

    @property
    def given(self) -> Mapping[str, Any]:
        """The settings of `SamplingParams`."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Everything that says how a reply is made."""

    template: TemplateOptions
    depth: DepthOptions
    sampling: SamplingOptions
    drafts: DraftOptions
    loading: ModelOptions


Json = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object."),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        envvar="D3_DEBUG",
        rich_help_panel=OUTPUT,
        # In the environment, because an error may come before any command runs.
        callback=lambda on: os.environ.__setitem__("D3_DEBUG", "1") if on else None,
        help="Show a traceback with an error.",
    ),
]
