"""The free audit: what full depth would have chosen, wherever a repair reads a reply again."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from d3cli.decode import DecodedToken
from d3cli.model import LoadedModel

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
    """Compares a reply's raw argmax with full depth's, position by position.

    Args:
        tokens: the reply.
        prompt_len: where it begins.
        below: tokens predicted at less than this depth are compared; token 0 never is, since it
            came out of a prefill.
        unchanged: positions whose context is still what it was; beyond, nothing can be compared.
    """

    def __init__(
        self, tokens: Sequence[DecodedToken], prompt_len: int, below: float, unchanged: int
    ) -> None:
        self._compared = self._agreed = 0
        # Position -> D³'s argmax there. Token t was predicted at position prompt_len + t - 1.
        self._top_ids = {
            position: token.top_id
            for position, token in enumerate(tokens, start=prompt_len - 1)
            if token.step and token.depth < below and position < unchanged
        }

    def compare(self, model: LoadedModel, start: int, hidden: Tensor) -> None:
        """Audits the positions of one prefill chunk, ``hidden`` ``[S, H]``, in small parts."""
        positions = [at for at in range(start, start + len(hidden)) if at in self._top_ids]
        for begin in range(0, len(positions), AUDIT_CHUNK):
            part = positions[begin : begin + AUDIT_CHUNK]
            full = model.logits(hidden[[at - start for at in part]]).argmax(dim=-1).tolist()
            self._compared += len(part)
            self._agreed += sum(
                self._top_ids[at] == top for at, top in zip(part, full, strict=True)
            )

    def result(self) -> Agreement:
        return Agreement(self._compared, self._agreed)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
