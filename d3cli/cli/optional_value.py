"""Options that may stand without a value, which Typer does not know."""

from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

from d3cli.cli.draft_options import LosslessName

# Each such option with the words that it knows. Without a word it means the first.
OPTIONAL: Mapping[str, Sequence[str]] = {"--lossless": tuple(LosslessName)}


class WithOptionalValues(TyperCommand):
    """A command of which some options may stand without a value.

    After such an option, a word is its value only if the option knows it. So a prompt or a model
    may follow.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        takes_value = {
            name
            for parameter in self.get_params(ctx)
            if parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False)
            for name in parameter.opts
        }
        return list(super().parse_args(ctx, list(_completed(args, takes_value))))


def _completed(args: Sequence[str], takes_value: Container[str]) -> Iterator[str]:
    """The words of a command line, with a value for each option that has none."""
    left = deque(args)
    while left:
        word = left.popleft()
        if word in OPTIONAL:
            known = OPTIONAL[word]
            yield f"{word}={left.popleft() if left and left[0] in known else known[0]}"
            continue
        yield word
        if word == "--":
            yield from left
            return
        if word in takes_value and left:
            yield left.popleft()
