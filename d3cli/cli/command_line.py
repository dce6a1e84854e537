"""A command line, resolved into one settings object.

An option's value comes from the command line, else from its ``D3_*`` variable, else from
config.toml, else from its default. A command is a function of one dataclass; this module makes the
signature that Typer reads from the dataclass's fields.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import typer
from typer.core import TyperGroup

from d3cli.base.errors import UsageError
from d3cli.base.settings import config_file, load_settings

# In config.toml but not options: the default model and the user's names for models.
NOT_OPTIONS = frozenset({"model", "aliases"})
# Options of 0.1.0: its config files are still read.
REMOVED = frozenset({"quantize_head", "verify"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSettings:
    """The base of every command's settings.

    A field is an option, an argument, or a group of them that is a dataclass as well.

    Attributes:
        typed: what stands on the command line itself, by field name; each with its spelling,
            such as ``--max-tokens``.
    """

    typed: Mapping[str, str] = field(default_factory=dict)


S = TypeVar("S", bound=CommandSettings)
T = TypeVar("T")


def command(kind: type[S]) -> Callable[[Callable[[S], int]], Callable[..., int]]:
    """Makes a function of one settings object a command that Typer can register.

    A group's function is skipped when a subcommand runs: its options are for itself.
    """

    def decorate(function: Callable[[S], int]) -> Callable[..., int]:
        def run(ctx: typer.Context, **values: Any) -> int:
            if ctx.invoked_subcommand is not None:
                return 0
            return function(_build(kind, values, typed=_typed(ctx)))

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


class _GroupWithArguments(TyperGroup):
    """A command with options and arguments of its own, and with subcommands.

    The first word decides: a subcommand's name runs that; all else is for the command itself.
    """

    allow_extra_args = False
    allow_interspersed_args = True

    def get_params(self, ctx: Any) -> list[Any]:
        """None for a subcommand, which asks so as to write its usage line."""
        return [] if ctx.command in self.commands.values() else super().get_params(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line says nothing of subcommands: the help lists them."""
        return [piece for piece in super().collect_usage_pieces(ctx) if piece]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        subcommand = args[:1] if args and args[0] in self.commands else []
        super().parse_args(ctx, [] if subcommand else args)
        if subcommand:
            ctx._protected_args, ctx.args = subcommand, args[1:]
        return list(ctx.args)


def command_group() -> typer.Typer:
    """A Typer app whose callback is a command that takes arguments, beside its subcommands."""
    return typer.Typer(
        cls=_GroupWithArguments,
        invoke_without_command=True,
        no_args_is_help=False,
        subcommand_metavar="",
    )


def defaults_from_config(
    commands: Mapping[str, type[CommandSettings]],
) -> tuple[dict[str, dict[str, str]], str]:
    """What config.toml sets, as each command's defaults, and a note about it.

    The values are text, as environment variables are, so that one parser reads both.

    Raises:
        UsageError: the file cannot be read, or sets what no command has.
    """
    values = {name: value for name, value in load_settings().items() if name not in NOT_OPTIONS}
    known = {name: _configurable(kind) for name, kind in commands.items()}
    everything = sorted(frozenset().union(*known.values()))
    removed = sorted(values.keys() & REMOVED)
    unknown = sorted(values.keys() - REMOVED - set(everything))
    if unknown:
        raise UsageError(
            f'unknown setting "{unknown[0]}" in the config file {config_file()}',
            f"settings: model, {', '.join(everything)}",
        )
    defaults = {
        command: {name: str(value) for name, value in values.items() if name in names}
        for command, names in known.items()
    }
    note = f"ignored in {config_file()}: {', '.join(removed)}; d3 no longer has these settings"
    return defaults, note if removed else ""


def _options(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of each option of a dataclass and the groups in it."""
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
    """A dataclass and the groups in it, from flat values."""
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
    """The options that config.toml may set: those that a ``D3_*`` variable of the name sets."""
    return frozenset(
        name
        for name, annotation, _ in _options(kind)
        if getattr(annotation.__metadata__[0], "envvar", None) == f"D3_{name.upper()}"
        and name != "debug"
    )
