"""The command line of ``d3 profile``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from d3cli.cli import options
from d3cli.cli.command_line import CommandSettings
from d3cli.cli.profile.destination import Format
from d3cli.cli.prompt_options import INPUT, PromptOptions
from d3cli.depth.policies import Policy

MEASURE, RECORDED = "Measure", "Recorded runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """What is measured besides the reply itself."""

    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            rich_help_panel=MEASURE,
            help="Show what full depth would have chosen at each token, and time full depth and "
            "the reply's own depth in turn. With --lossless: write whole replies, plain "
            "ones in turn, and compare their times and tokens.",
        ),
    ] = False
    needed: Annotated[
        bool,
        typer.Option(
            "--needed",
            rich_help_panel=MEASURE,
            help="Show how many layers each token needs to be chosen as full depth chooses it; "
            "one pass per layer.",
        ),
    ] = False
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            rich_help_panel=MEASURE,
            help="Show time and bytes by layer and part, at full depth.",
        ),
    ] = False
    repeat: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            rich_help_panel=MEASURE,
            help="Timed runs per prompt, after one warm-up run; shows mean ± sd.",
        ),
    ] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedOptions:
    """Runs that were recorded before."""

    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="TRACE",
            rich_help_panel=RECORDED,
            help="Show a run that was recorded with -o json; no model is loaded.",
        ),
    ] = None
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACE",
            rich_help_panel=RECORDED,
            help="Compare the run of --from with this one.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings(CommandSettings):
    """The command line of ``d3 profile``."""

    prompts: PromptOptions
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            rich_help_panel=INPUT,
            help='Several prompts: a file of JSON rows that have "prompt" or "messages".',
        ),
    ] = None
    policy: Annotated[
        Policy,
        typer.Option(
            rich_help_panel=options.DEPTH,
            help="What chooses the layers of each token: D³, or a rival that reads as many bytes "
            "in replies of --max-tokens (without it, 256).",
        ),
    ] = Policy.D3
    measure: MeasureOptions
    reply: options.GenerationOptions
    recorded: RecordedOptions
    form: Annotated[
        Format | None,
        typer.Option(
            "-o",
            "--output",
            rich_help_panel=options.OUTPUT,
            help="Form of the result. Default: the extension of --output-file, else table.",
        ),
    ] = None
    output_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="Write the result to this file. A terminal also shows the table.",
        ),
    ] = None
    as_json: options.Json = False
    debug: options.Debug = False
