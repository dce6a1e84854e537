"""What drafts the lossless replies of a server, and the memory that it takes.

A draft model has one KV cache for all conversations: it holds the one that drafted last.
"""

from d3cli.decode.draft.by_model import ModelSource
from d3cli.decode.draft.drafter import Drafter, SourceChoice
from d3cli.model.memory import kv_bytes_per_position
from d3cli.model.model import LoadedModel


class Drafts:
    """One drafter for each choice of what drafts, kept since it learns.

    Args:
        draft_model: a smaller model with the same tokenizer; None for none.

    Attributes:
        position_bytes: of one token in the draft model's KV cache; 0 without a draft model.
        layer_bytes: of one token in one of its layers.

    Raises:
        ModelError: the tokenizers of the models differ.
    """

    def __init__(self, model: LoadedModel, draft_model: LoadedModel | None = None) -> None:
        self._model, self._draft_model = model, draft_model
        self._by_model = None if draft_model is None else ModelSource(model, draft_model)
        self._drafters: dict[SourceChoice, Drafter] = {}
        self.position_bytes = self.layer_bytes = 0
        if draft_model is not None:
            lm = draft_model.causal_lm
            self.position_bytes = kv_bytes_per_position(lm.config, lm.dtype)
            self.layer_bytes = self.position_bytes // draft_model.num_layers

    @property
    def nbytes(self) -> int:
        """Bytes that the draft model's KV cache takes."""
        return 0 if self._by_model is None else self._by_model.nbytes

    def room(self, source: SourceChoice | None) -> int | None:
        """How many positions the draft model's KV cache has room for; None if it is not used.

        Args:
            source: what drafts; None for a plain reply.
        """
        if self._by_model is None or source not in ("auto", "model"):
            return None
        return self._by_model.room

    def predicted(self, positions: int, source: SourceChoice | None) -> int:
        """Bytes of the draft model's KV cache in a reply.

        Args:
            positions: tokens of prompt and reply.
            source: what drafts; None for a plain reply.
        """
        if self._draft_model is None or source not in ("auto", "model"):
            return 0
        return min(positions, self._draft_model.context_length) * self.position_bytes

    def reserve(self, positions: int) -> None:
        """Makes the draft model's KV cache get room for so many positions."""
        if self._by_model is not None:
            self._by_model.reserve(positions)

    def drafter(self, source: SourceChoice) -> Drafter:
        """What drafts for the next reply."""
        if source not in self._drafters:
            self._drafters[source] = Drafter.for_model(
                self._model, source, draft_model=self._by_model
            )
        return self._drafters[source]

    def clear(self) -> None:
        """Empties the draft model's KV cache and frees its memory."""
        if self._by_model is not None:
            self._by_model.clear()
