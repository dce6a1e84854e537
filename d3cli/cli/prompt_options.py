"""The options that make a prompt: what is asked, and what the chat template makes of it."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from d3cli.cli.completion import complete_model
from d3cli.cli.model_options import MODEL_HELP

INPUT = "Input"


class Think(StrEnum):
    """Whether a reasoning model thinks before it answers, and whether that is shown."""

    on = "on"
    off = "off"
    hide = "hide"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """The model's name and the prompt, as typed: which argument is which is decided later."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_model,
            help=MODEL_HELP + ". A lone argument that names no model is the prompt.",
        ),
    ] = None
    text: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin."),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=INPUT,
            help="The prompt; the argument is then the model.",
        ),
    ] = None
    prompt_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=INPUT, help="Read the prompt from a file."),
    ] = None
    no_stdin: Annotated[
        bool,
        typer.Option(
            "--no-stdin",
            envvar="D3_NO_STDIN",
            rich_help_panel=INPUT,
            help="Do not put piped text before the prompt: leave stdin to the script.",
        ),
    ] = False
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            rich_help_panel=INPUT,
            help="Use no chat template. Special tokens written in the prompt are parsed.",
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOptions:
    """What the chat template is given."""

    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            "-s",
            envvar="D3_SYSTEM",
            metavar="TEXT",
            rich_help_panel=INPUT,
            help="The system prompt.",
        ),
    ] = None
    chat_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=INPUT,
            help="A Jinja chat template to use instead of the model's own.",
        ),
    ] = None
    think: Annotated[
        Think | None,
        typer.Option(
            rich_help_panel=INPUT,
            help="Turn a reasoning model's thinking on or off, if its chat template can. "
            "hide: it thinks, but the reply shows only the answer.",
        ),
    ] = None
