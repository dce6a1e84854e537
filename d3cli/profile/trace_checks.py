"""What must hold within a trace: bytes against the model, and passes against the tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from d3cli.depth.units import WeightBytes
from d3cli.profile.trace_fields import require
from d3cli.profile.trace_lossless import PassTrace

if TYPE_CHECKING:
    from d3cli.profile.trace import TokenTrace


def check_bytes(token: "TokenTrace", weights: WeightBytes, read_by_dropped: list[int]) -> None:
    """Raises ValueError if no pass over this model reads the bytes recorded for a token."""
    found, dropped = token.bytes_read, token.dropped_units
    if token.step == 0:
        right, expected = found == weights.total, f"the prefill reads all {weights.total}"
    elif dropped is not None:
        read = read_by_dropped[dropped]
        right, expected = found == read, f"with dropped_units {dropped} it must be {read}"
    else:
        right = weights.fixed <= found <= weights.total
        expected = f"it must be between {weights.fixed} and {weights.total}"
    require(right, f"bytes_read of step {token.step} is {found}, but {expected}")


def check_shared_bytes(
    tokens: Sequence["TokenTrace"], passes: Sequence[PassTrace], weights: WeightBytes
) -> None:
    """Raises ValueError if a token's share of its pass and draft does not fit the model."""
    for token in tokens:
        if token.pass_number is None:  # the prefill
            check_bytes(token, weights, [])
            continue
        done, found = passes[token.pass_number], token.bytes_read
        share = weights.total // done.tokens
        without_weights = done.source in (None, "lookup")
        right = found == share if without_weights else found >= share
        expected = f"its share of the pass is {'' if without_weights else 'at least '}{share}"
        require(right, f"bytes_read of step {token.step} is {found}, but {expected}")


def check_passes(tokens: Sequence["TokenTrace"], passes: Sequence[PassTrace]) -> None:
    """Raises ValueError if these passes cannot have given these tokens of a lossless reply."""
    step = 1
    for number, done in enumerate(passes):
        name, is_last = f"pass {number}", number == len(passes) - 1
        require(done.step == step, f"{name} begins at step {done.step} instead of {step}")
        require(step < len(tokens), f"{name} begins after the reply's end")
        step += done.tokens
        require(is_last or step < len(tokens), f"{name} gives tokens beyond the reply's end")
        require(is_last or done.tokens > done.accepted, f"{name} has no token of full depth's own")
        for at, token in enumerate(tokens[done.step : step]):
            _check_token(token, number, done, at)
    require(step >= len(tokens), f"no pass gave step {step}")
    for token in tokens[:1]:
        drafted = (token.pass_number, token.drafted_by, token.rejected_text)
        require(drafted == (None, None, None), "step 0 comes from the prefill, not from a pass")


def _check_token(token: "TokenTrace", number: int, done: PassTrace, at: int) -> None:
    """Raises ValueError if a token is not the one at this place of its pass."""
    is_drafted = at < done.accepted
    name = f"step {token.step}"
    require(token.pass_number == number, f"{name} is of pass {number}, not {token.pass_number}")
    source = done.source if is_drafted else None
    require(token.drafted_by == source, f"{name} was drafted by {source}, not {token.drafted_by}")
    replaces = at == done.accepted and done.has_rejected
    require((token.rejected_text is not None) == replaces, f"rejected_text does not fit {name}")
    if is_drafted:
        same = token.token_id == done.draft_ids[at]
        require(same, f"{name} is not the token that was drafted and accepted")
    elif replaces:
        differs = token.token_id != done.draft_ids[at]
        require(differs, f"{name} is the token that was drafted and rejected")
