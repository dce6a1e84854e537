"""The command lines of ``d3 calibrate`` and its subcommands."""

import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from d3cli.cli import options
from d3cli.cli.command_line import CommandSettings
from d3cli.cli.completion import complete_model
from d3cli.cli.model_options import MODEL_HELP, ModelOptions

SEARCH, TEXT, STORE = "Search", "Text", "Store"
# Documents that are used unless --documents says otherwise; more change a result little.
DOCUMENTS = 240


class Purpose(StrEnum):
    """What the schedule is for."""

    perplexity = "perplexity"
    lossless = "lossless"


class OrderName(StrEnum):
    """How units are ranked."""

    auto = "auto"
    influence = "influence"
    greedy = "greedy"
    prompt = "prompt"


class Format(StrEnum):
    """How the report is printed."""

    table = "table"
    json = "json"
    csv = "csv"


def _complete_model_or_command(incomplete: str) -> list[str]:
    commands = [name for name in ("score", "show", "remove") if name.startswith(incomplete)]
    return [*commands, *complete_model(incomplete)]


Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", autocompletion=complete_model, help=MODEL_HELP + "."),
]
Output = Annotated[
    Format,
    typer.Option("-o", "--output", rich_help_panel=options.OUTPUT, help="Form of the report."),
]


def _pick_seed(value: int) -> int:
    """A seed as typed: -1 draws one, which the stored calibration keeps.

    Raises:
        typer.BadParameter: it is another negative number.
    """
    if value == -1:
        return secrets.randbits(31)
    if value < 0:
        raise typer.BadParameter(f"{value} is not at least 0, or -1 for a random seed")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What is searched for, and how long; targets and times as typed."""

    purpose: Annotated[
        Purpose,
        typer.Option(
            "--for",
            rich_help_panel=SEARCH,
            help="perplexity: the fastest schedule within --target-drop. lossless: the schedule "
            "that drafts best for --lossless, on the model's own replies.",
        ),
    ] = Purpose.perplexity
    target_drop: Annotated[
        str,
        typer.Option(
            metavar="PERCENT",
            rich_help_panel=SEARCH,
            help="Maximum rise in perplexity: 1%, or a fraction such as 0.01.",
        ),
    ] = "1%"
    confidence: Annotated[
        float,
        typer.Option(
            metavar="FLOAT",
            rich_help_panel=SEARCH,
            help="How sure the test must be that the rise is within the target.",
        ),
    ] = 0.9
    units: Annotated[
        options.UnitsName,
        typer.Option(
            rich_help_panel=SEARCH,
            help="What may be dropped. auto: layers and sublayers, and mixes with low planes "
            "where the weights are nested; the fastest wins.",
        ),
    ] = options.UnitsName.auto
    order: Annotated[
        OrderName,
        typer.Option(
            rich_help_panel=SEARCH,
            help="How units are ranked: by Block Influence, greedily by loss per byte, or for each "
            "prompt by its own influence. auto: greedy if time allows, and each prompt's own as "
            "well.",
        ),
    ] = OrderName.auto
    reply_tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1 << 20,
            metavar="N",
            rich_help_panel=SEARCH,
            help="Length of the replies that savings are computed for. Default: 256, or the "
            "model's context if it is shorter; with --for lossless, 64.",
        ),
    ] = None
    replies: Annotated[
        bool,
        typer.Option(
            "--replies",
            rich_help_panel=SEARCH,
            help="Also let D³ write replies, and let full depth judge them.",
        ),
    ] = False
    compare_policies: Annotated[
        bool,
        typer.Option(
            "--compare-policies",
            rich_help_panel=SEARCH,
            help="Also compare D³ with rival policies at equal bytes: on unseen text, and by "
            "the replies that each writes.",
        ),
    ] = False
    max_time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            rich_help_panel=SEARCH,
            help="Stop after about this time and keep the best result: 90s, 10m, 1h.",
        ),
    ] = "10m"
    seed: Annotated[
        int,
        typer.Option(
            callback=_pick_seed,
            metavar="N",
            rich_help_panel=SEARCH,
            help="Seed for shuffling and splitting the documents; -1 draws one.",
        ),
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """The text that schedules are scored on."""

    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=TEXT,
            help="Your own held-out text: JSON rows with prompt and response, messages, or text; "
            "or plain text. Default: pairs that ship with d3.",
        ),
    ] = None
    documents: Annotated[
        int | None,
        typer.Option(
            min=32,
            metavar="N",
            rich_help_panel=TEXT,
            help="Number of documents, one half to search and one to test. Default: at most "
            f"{DOCUMENTS}, fewer if time is short; with --for lossless, 48.",
        ),
    ] = None
    task: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=TEXT,
            help="Questions of your own: JSON lines with prompt and answers, or prompt and "
            "pattern. The report says how many are answered right at full depth and at the chosen "
            "schedule.",
        ),
    ] = None
    self_replies: Annotated[
        bool,
        typer.Option(
            "--self-replies",
            rich_help_panel=TEXT,
            help="Score on the model's own full-depth replies to the prompts.",
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateSettings(CommandSettings):
    """The command line of ``d3 calibrate``."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=_complete_model_or_command,
            help=MODEL_HELP + ".",
        ),
    ] = None
    search: SearchOptions
    text: TextOptions
    show: Annotated[
        bool,
        typer.Option("--show", rich_help_panel=STORE, help="The same as d3 calibrate show."),
    ] = False
    remove: Annotated[
        bool,
        typer.Option("--remove", rich_help_panel=STORE, help="The same as d3 calibrate remove."),
    ] = False
    loading: ModelOptions
    form: Output = Format.table
    as_json: options.Json = False
    debug: options.Debug = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings(CommandSettings):
    """The command line of ``d3 calibrate score``."""

    model: Model = None
    task: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=TEXT,
            help="Required. The questions: JSON lines with prompt and answers, or prompt and "
            "pattern.",
        ),
    ] = None
    max_tokens: Annotated[
        int,
        typer.Option(min=2, metavar="N", rich_help_panel=TEXT, help="The most tokens of a reply."),
    ] = 256
    max_time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            rich_help_panel=TEXT,
            help="Ask as many questions as fit into about this time, at least 8: 90s, 10m, 1h.",
        ),
    ] = "10m"
    seed: Annotated[
        int,
        typer.Option(
            callback=_pick_seed,
            metavar="N",
            rich_help_panel=TEXT,
            help="Seed for the order of the questions; -1 draws one.",
        ),
    ] = 0
    depth: options.DepthOptions
    loading: ModelOptions
    form: Output = Format.table
    as_json: options.Json = False
    debug: options.Debug = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowSettings(CommandSettings):
    """The command line of ``d3 calibrate show``."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_model,
            help="An alias, a hub id, a directory or a GGUF file. Default: all models.",
        ),
    ] = None
    form: Output = Format.table
    as_json: options.Json = False
    debug: options.Debug = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveSettings(CommandSettings):
    """The command line of ``d3 calibrate remove``."""

    model: Model = None
    debug: options.Debug = False
