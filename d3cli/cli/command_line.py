"""Resolves a command line into one settings object.

A command is a function of one dataclass. This module turns the dataclass's fields into the
signature that Typer reads. An option's value comes from the command line, else from its ``D3_*``
variable, else from config.toml, else from its default.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import typer
from typer.core import TyperGroup

from d3cli.base.errors import D3Error, Setting, UsageError
from d3cli.base.settings import aliases, config_file, load_settings
from d3cli.cli import removed
from d3cli.cli.output import flag

# Keys of config.toml that are not options: the default model and the user's aliases.
NOT_OPTIONS = frozenset({"model", "aliases"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSettings:
    """The base class of a command's settings.

    A field is an option or an argument (``Annotated`` with Typer's), or a group: a dataclass of
    such fields.

    Attributes:
        typed: the fields that were given on the command line itself, not by the environment or
            config.toml; each with its spelling, such as ``--max-tokens``.
    """

    typed: Mapping[str, str] = field(default_factory=dict)


S = TypeVar("S", bound=CommandSettings)
T = TypeVar("T")


def command(kind: type[S]) -> Callable[[Callable[[S], int]], Callable[..., int]]:
    """Decorates a function of one settings object, so that Typer can register it as a command.

    As the callback of a group the function does not run when a subcommand runs.
    """

    def decorate(function: Callable[[S], int]) -> Callable[..., int]:
        def run(ctx: typer.Context, **values: Any) -> int:
            if ctx.invoked_subcommand is not None:
                _refuse_before_subcommand(ctx, ctx.invoked_subcommand)
                return 0
            try:
                return function(_build(kind, values, typed=_typed(ctx)))
            except D3Error as error:
                flags = {flag(Setting(name)) for name in error.settings}
                for parameter in ctx.command.params:
                    if flags.intersection(parameter.opts):
                        note_origin(error, ctx, parameter)
                raise

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
        parameters += [
            inspect.Parameter(name, keyword, default=default, annotation=annotation)
            for name, annotation, default in _options(kind)
        ]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def note_origin(error: Exception, ctx: typer.Context, parameter: Any) -> None:
    """Adds to an error where the value at fault was set, unless it was typed."""
    source = ctx.get_parameter_source(parameter.name or "")
    if source is None:
        return
    if source.name == "ENVIRONMENT":
        error.add_note(f"{parameter.opts[0]} is set by the variable {parameter.envvar}")
    elif source.name == "DEFAULT_MAP":
        error.add_note(f"{parameter.opts[0]} is set in {config_file()}")


def _refuse_before_subcommand(ctx: typer.Context, subcommand: str) -> None:
    """Refuses options of the group itself, which a subcommand would ignore."""
    for name, spelling in _typed(ctx).items():
        if name != "debug":
            raise UsageError(
                f"{spelling} belongs to {ctx.command_path}, not to {ctx.command_path} {subcommand}",
                "leave it out",
            )


class _GroupWithArguments(TyperGroup):
    """A command that has arguments and also subcommands.

    If the first word is the name of a subcommand, that runs; otherwise the command itself does.
    """

    allow_extra_args = False
    allow_interspersed_args = True

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters; none for a subcommand, whose usage line would list them.

        Before a subcommand (see `parse_args`) there are no arguments.
        """
        if ctx.command in self.commands.values():
            return []
        every = super().get_params(ctx)
        return [one for one in every if one.param_type_name == "option" or not ctx.allow_extra_args]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line, which ends with the subcommands."""
        pieces = [piece for piece in super().collect_usage_pieces(ctx) if piece]
        return [*pieces, *(f"| {name} ..." for name in self.commands)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            # As in any group: the first word and those after it belong to the subcommand.
            parameters = self.get_params(ctx)
            arguments = {one.name: None for one in parameters if one.param_type_name == "argument"}
            ctx.allow_extra_args, ctx.allow_interspersed_args = True, False
            rest = super().parse_args(ctx, args)
            ctx.params = arguments | ctx.params
            return list(rest)
        try:
            rest = super().parse_args(ctx, args)
        except typer.TyperException:  # such as too many arguments: the subcommand's own
            self._refuse_late_subcommand(ctx)
            raise
        self._refuse_late_subcommand(ctx)
        return list(rest)

    def _refuse_late_subcommand(self, ctx: Any) -> None:
        """Refuses a subcommand after options, which would be the name of a model.

        A model that has this name is accepted.
        """
        word = ctx.params.get("model")
        if word not in self.commands or ctx.resilient_parsing:
            return
        if word not in aliases() and not Path(word).is_dir():
            raise UsageError(
                f"{word} comes after options, so it would be the name of a model",
                f"options go after {word}: {ctx.command_path} {word} --help lists them",
            )


def command_group() -> typer.Typer:
    """A Typer app whose callback is a command with arguments, besides its subcommands."""
    return typer.Typer(
        cls=_GroupWithArguments,
        invoke_without_command=True,
        no_args_is_help=False,
        subcommand_metavar="",
    )


def defaults_from_config(
    commands: Mapping[str, type[CommandSettings]],
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The defaults that config.toml sets for each command, and notes about ignored settings.

    The values are text, like environment variables, so that one parser reads both.

    Raises:
        UsageError: the file cannot be read, or has an unknown key.
    """
    values = {name: value for name, value in load_settings().items() if name not in NOT_OPTIONS}
    known = {name: _configurable(kind) for name, kind in commands.items()}
    everything = sorted(frozenset().union(*known.values()))
    unknown = sorted(values.keys() - removed.CONFIGURABLE - set(everything))
    if unknown:
        raise UsageError(
            f'unknown setting "{unknown[0]}" in the config file {config_file()}',
            f"settings: model, {', '.join(everything)}",
        )
    defaults = {
        command: {name: str(value) for name, value in values.items() if name in names}
        for command, names in known.items()
    }
    notes = (removed.ignored(values, str(config_file())), removed.ignored_variables())
    return defaults, [note for note in notes if note]


def _options(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of each option of a dataclass and its groups."""
    hints = get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        hint = hints[each.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _options(hint)
        elif each.name != "typed":
            default = inspect.Parameter.empty if each.default is MISSING else each.default
            yield each.name, hint, default


def _build(kind: type[T], values: Mapping[str, Any], **more: Any) -> T:
    """Builds a dataclass and its groups from flat values."""
    hints = get_type_hints(kind)
    for each in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(hint := hints[each.name]):
            more[each.name] = _build(hint, values)  # type: ignore[arg-type]
        elif each.name in values:
            more[each.name] = values[each.name]
    return kind(**more)


def _typed(ctx: typer.Context) -> dict[str, str]:
    found = {}
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            spelling = parameter.opts[0]
            found[name] = spelling if spelling.startswith("-") else name.upper()
    return found


def _configurable(kind: type) -> frozenset[str]:
    """The options that config.toml may set: those with a ``D3_*`` variable, except --debug."""
    return frozenset(
        name
        for name, annotation, _ in _options(kind)
        if getattr(annotation.__metadata__[0], "envvar", None) == f"D3_{name.upper()}"
        and name != "debug"
    )
