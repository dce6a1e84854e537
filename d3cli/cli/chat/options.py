"""The command line of ``d3 chat``."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from d3cli.cli import options
from d3cli.cli.command_line import CommandSettings
from d3cli.cli.completion import complete_model
from d3cli.cli.model_options import MODEL_HELP
from d3cli.cli.prompt_options import INPUT

KEPT = "Conversations"


class Keys(StrEnum):
    """The editing keys of the prompt."""

    emacs = "emacs"
    vi = "vi"


class Overflow(StrEnum):
    """What happens when the context is full."""

    stop = "stop"
    drop_oldest = "drop-oldest"


class RepairName(StrEnum):
    """Whether the KV cache is repaired between turns."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepOptions:
    """Which conversation continues, and whether this one is kept."""

    resume_last: Annotated[
        bool,
        typer.Option(
            "--continue", "-c", rich_help_panel=KEPT, help="Continue the last conversation."
        ),
    ] = False
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            rich_help_panel=KEPT,
            help="Continue this conversation; the beginning of its id (see --list) is enough.",
        ),
    ] = None
    list_all: Annotated[
        bool, typer.Option("--list", rich_help_panel=KEPT, help="List the conversations.")
    ] = False
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=KEPT, help="With --list: print one JSON object."),
    ] = False
    delete: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            rich_help_panel=KEPT,
            help="Delete this conversation; the beginning of its id is enough.",
        ),
    ] = None
    yes: Annotated[
        bool, typer.Option("--yes", rich_help_panel=KEPT, help="With --delete: do not ask.")
    ] = False
    no_save: Annotated[
        bool,
        typer.Option(
            "--no-save",
            rich_help_panel=KEPT,
            help="Save neither this conversation nor the input history.",
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCommandSettings(CommandSettings):
    """The command line of ``d3 chat``."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_model,
            help=MODEL_HELP
            + "; a conversation continues with the model that wrote its last reply.",
        ),
    ] = None
    keep: KeepOptions
    reply: options.GenerationOptions
    keys: Annotated[
        Keys,
        typer.Option(envvar="D3_KEYS", rich_help_panel=INPUT, help="Editing keys at the prompt."),
    ] = Keys.emacs
    on_overflow: Annotated[
        Overflow,
        typer.Option(
            envvar="D3_ON_OVERFLOW",
            rich_help_panel=INPUT,
            help="When the context is full: say so and stop, or drop the oldest turns and list "
            "them.",
        ),
    ] = Overflow.stop
    repair: Annotated[
        RepairName,
        typer.Option(
            envvar="D3_REPAIR",
            rich_help_panel=options.DEPTH,
            help="Read the part of a reply that ran below full depth again before the next turn "
            "(auto, always), mostly while you type; never: only if keys or values are missing.",
        ),
    ] = RepairName.auto
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", rich_help_panel=options.OUTPUT, help="Show replies as text, not as Markdown."
        ),
    ] = False
    no_stats: Annotated[
        bool,
        typer.Option(
            "--no-stats", rich_help_panel=options.OUTPUT, help="Show no figures after a reply."
        ),
    ] = False
    debug: options.Debug = False
