"""Settings that d3 no longer has, and what to use instead."""

import os
from collections.abc import Iterable

# By the name of the setting; each is a hint.
REPLACEMENTS = {
    "prompt_tokens": "leave it out: a passage's first 64 tokens are its prompt",
    "quantize_head": "leave it out: quantized layers have an 8-bit head where that pays",
    "system_file": 'use -s "$(cat FILE)"',
    "verify": "to verify a model's files, use d3 models verify MODEL",
}
# Those that a config file or a D3_* variable could set.
CONFIGURABLE = frozenset({"quantize_head", "verify"})


def replacement(option: str) -> str:
    """What to use instead of an option such as ``--verify``; empty if d3 never had it."""
    return REPLACEMENTS.get(option.removeprefix("--").replace("-", "_"), "")


def ignored(settings: Iterable[str], place: str) -> str:
    """A note on removed settings that the config file holds; empty if there are none."""
    found = sorted(CONFIGURABLE.intersection(settings))
    return _note({name: name for name in found}, place)


def ignored_variables() -> str:
    """A note on variables of removed settings that the environment holds; empty if none does."""
    variables = {name: f"D3_{name.upper()}" for name in sorted(CONFIGURABLE)}
    found = {name: variable for name, variable in variables.items() if os.environ.get(variable)}
    return _note(found, "the environment")


def _note(spelled: dict[str, str], place: str) -> str:
    if not spelled:
        return ""
    hints = "; ".join(f"{spelled[name]}: {REPLACEMENTS[name]}" for name in spelled)
    names = ", ".join(spelled.values())
    return f"ignored in {place}: {names}; d3 no longer has these settings ({hints})"
