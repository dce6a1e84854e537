"""The free audit: what full depth would have chosen, wherever a repair reads a reply again."""

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
        """The share that agreed; None where no token ran below full depth."""
        return self.agreed / self.compared if self.compared else None


class Audit:
    """Compares one reply's raw argmax with full depth's, each position once.

    Args:
        prompt_ids: its prompt.
        tokens: the reply.
        below: tokens predicted at less than this depth are compared; token 0 never is, since it
            came out of a prefill.
    """

    def __init__(
        self, prompt_ids: Sequence[int], tokens: Sequence[DecodedToken], below: float
    ) -> None:
        self._compared = self._agreed = 0
        self._token_ids = [*prompt_ids, *(token.token_id for token in tokens)]
        # Position -> D³'s argmax there. Token t was predicted at position prompt_len + t - 1.
        self._top_ids = {
            position: token.top_id
            for position, token in enumerate(tokens, start=len(prompt_ids) - 1)
            if token.step and token.depth < below
        }

    def unchanged(self, token_ids: Sequence[int]) -> int:
        """How far `token_ids` are the reply's own: beyond, there is nothing to compare."""
        return common_prefix(self._token_ids, token_ids)

    def compare(self, model: LoadedModel, start: int, hidden: Tensor, unchanged: int) -> None:
        """Audits the positions of one prefill chunk, ``hidden`` ``[S, H]``, in small parts."""
        end = min(start + len(hidden), unchanged)
        positions = [at for at in self._top_ids if start <= at < end]
        for begin in range(0, len(positions), AUDIT_CHUNK):
            part = positions[begin : begin + AUDIT_CHUNK]
            full = model.logits(hidden[[at - start for at in part]]).argmax(dim=-1).tolist()
            self._compared += len(part)
            self._agreed += sum(
                self._top_ids.pop(at) == top for at, top in zip(part, full, strict=True)
            )

    def result(self) -> Agreement:
        """What was found so far."""
        return Agreement(self._compared, self._agreed)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
