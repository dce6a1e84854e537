"""Checks the vocabulary that a GGUF file's metadata states, before a tokenizer is built of it.

A list may have items of any type, and the lists need not belong together. Knows nothing of how text
is split or merged.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from d3cli.base.errors import ModelError
from d3cli.base.inert import quoted
from d3cli.files.json_files import BROKEN_FILES, DO_NOT_USE, OTHER_FORMAT
from d3cli.files.vet_tokenizer import LONGEST_TOKEN, MOST_ADDED_TOKENS

# ggml's types of tokens.
CONTROL, USER_DEFINED = 3, 4
# Without merges in the file, each token is cut at each of its characters, so the time grows with
# the squares of the lengths. Vocabularies of 250,000 tokens come to a hundredth of this.
MOST_CUTS = 1 << 30


def vet_vocabulary(metadata: Mapping[str, Any]) -> None:
    """Refuses lists of wrong types or lengths, and those that would make tokenizing slow.

    Raises:
        ModelError: the message continues "the tokenizer cannot be loaded:".
    """

    def key(name: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}")

    if not key("tokens") or not key("model"):
        raise ModelError("the file holds no tokenizer", OTHER_FORMAT)
    tokens = _list_of("tokens", key("tokens"), str, "texts")
    types = _list_of("token_type", key("token_type"), int, "whole numbers")
    scores = _list_of("scores", key("scores"), float, "numbers")
    merges = _list_of("merges", key("merges"), str, "texts")
    for what, found in (("types of tokens", types), ("scores", scores)):
        if found and len(found) != len(tokens):
            raise ModelError(
                f"it has {len(tokens):,} tokens and {len(found):,} {what}", BROKEN_FILES
            )
    if not all(map(math.isfinite, scores)):
        raise ModelError("a score of a token is not a number", BROKEN_FILES)
    for merge in merges:
        if " " not in merge[1:-1]:
            raise ModelError(
                f"the merge {quoted(merge[:40])} does not name two tokens", BROKEN_FILES
            )
    _refuse_slow(tokens, types, has_merges=bool(merges) or key("model") != "llama")
    for name in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if key(name) not in (None, True, False):
            raise ModelError(f"tokenizer.ggml.{name} is neither true nor false", BROKEN_FILES)


def _list_of(name: str, found: Any, kind: type, in_words: str) -> Sequence[Any]:
    """A list of the metadata; empty if there is none."""
    if found is None:
        return ()
    if not isinstance(found, list | tuple) or set(map(type, found)) - {kind}:
        raise ModelError(f"tokenizer.ggml.{name} is not a list of {in_words}", BROKEN_FILES)
    return found


def _refuse_slow(tokens: Sequence[str], types: Sequence[int], *, has_merges: bool) -> None:
    longest = max(map(len, tokens))
    if longest > LONGEST_TOKEN:
        raise ModelError(f"it has a token of {longest:,} characters", DO_NOT_USE)
    added = sum(kind in (CONTROL, USER_DEFINED) for kind in types)
    if added > MOST_ADDED_TOKENS:
        raise ModelError(f"it has {added:,} added tokens", DO_NOT_USE)
    if not has_merges and sum(len(token) ** 2 for token in tokens) > MOST_CUTS:
        raise ModelError("it has so many long tokens that merging takes too long", DO_NOT_USE)
