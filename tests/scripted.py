"""Replies with a text of the test's choice: the steps are a model's, their tokens are not."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from d3cli.decode.loop import DecodedToken, decode

TOKEN = 5  # any one that ends no reply


def script(monkeypatch: pytest.MonkeyPatch, pieces: Sequence[str]) -> None:
    """Makes every reply consist of these pieces, one for each token."""

    class Detokenizer:
        def __init__(self, *_: object) -> None:
            self._left = list(pieces)

        def push(self, _: int) -> str:
            return self._left.pop(0) if self._left else ""

        def flush(self) -> str:
            return ""

    def steps(*arguments: Any, **options: Any) -> Iterator[DecodedToken]:
        for token in decode(*arguments, **options | {"eos_token_ids": ()}):
            yield replace(token, token_id=TOKEN)

    monkeypatch.setattr("d3cli.decode.reply.Detokenizer", Detokenizer)
    monkeypatch.setattr("d3cli.decode.reply.decode", steps)
