"""The free audit: a repair reads a reply again, and so tells what full depth would have chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from d3cli.decode.loop import DecodedToken
from d3cli.model.model import LoadedModel

# Positions whose full-depth choice is computed at once.
AUDIT_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often D³'s raw argmax was full depth's, over the tokens predicted below full depth."""

    compared: int
    agreed: int

    @property
    def share(self) -> float | None:
        """The share that agreed; None if no token ran below full depth."""
        return self.agreed / self.compared if self.compared else None


class Audit:
    """Compares one reply's raw argmax with full depth's, each position once.

    Args:
        prompt_ids: the reply's prompt.
        tokens: the reply. It may grow until `begin`.

    Attributes:
        prompt_len: tokens of the prompt.
    """

    def __init__(self, prompt_ids: Sequence[int], tokens: Sequence[DecodedToken]) -> None:
        self.prompt_len = len(prompt_ids)
        self._prompt_ids, self._tokens = prompt_ids, tokens
        self._token_ids: list[int] = []
        self._top_ids: dict[int, int] = {}  # position -> D³'s argmax there, still to be compared
        self._result: Agreement | None = None

    def begin(self, below: float, *, again: bool = False) -> None:
        """Lists the positions to compare. The reply must be over.

        Token 0 is never compared, because the prefill predicts it.

        Args:
            below: compare the tokens predicted at less than this depth.
            again: start over if the audit has begun. Otherwise it goes on.
        """
        if not self._tokens or (self._result and not again):
            return
        self._token_ids = [*self._prompt_ids, *(token.token_id for token in self._tokens)]
        # Token t was predicted at position prompt_len + t - 1.
        self._top_ids = {
            position: token.top_id
            for position, token in enumerate(self._tokens, start=self.prompt_len - 1)
            if token.step and token.depth < below
        }
        self._result = Agreement(0, 0)

    def unchanged(self, token_ids: Sequence[int]) -> int:
        """How many of the first `token_ids` are the reply's; only these can be compared."""
        return common_prefix(self._token_ids, token_ids)

    def compare(self, model: LoadedModel, start: int, hidden: Tensor, unchanged: int) -> None:
        """Compares the positions of one prefill chunk.

        Args:
            start: the position of the chunk's first token.
            hidden: the chunk's final hidden states at full depth, ``[S, H]``.
            unchanged: the positions that `unchanged` returned for the tokens being read.
        """
        end = min(start + len(hidden), unchanged)
        positions = [at for at in self._top_ids if start <= at < end]
        for begin in range(0, len(positions), AUDIT_CHUNK):
            part = positions[begin : begin + AUDIT_CHUNK]
            full = model.logits(hidden[[at - start for at in part]]).argmax(dim=-1).tolist()
            agreed = sum(self._top_ids.pop(at) == top for at, top in zip(part, full, strict=True))
            before = self._result or Agreement(0, 0)
            self._result = Agreement(before.compared + len(part), before.agreed + agreed)

    def result(self) -> Agreement | None:
        """The agreement so far; None before the audit has begun."""
        return self._result


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
