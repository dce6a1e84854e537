"""What drafts the lossless replies of a chat. Knows nothing of commands or screens."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d3cli.decode.draft.drafter import Drafter, SourceChoice
    from d3cli.model.model import LoadedModel


class Drafts:
    """One drafter, kept while the model and what drafts are the same, since it learns.

    Attributes:
        draft_model: a smaller model with the same tokenizer; None for none.
    """

    def __init__(self, draft_model: "LoadedModel | None" = None) -> None:
        self.draft_model = draft_model
        self._drafter: Drafter | None = None
        self._source: SourceChoice | None = None

    def drafter(self, model: "LoadedModel", source: "SourceChoice") -> "Drafter":
        """What drafts for this model. Call `forget` before it is for another model.

        Raises:
            ModelError: the draft model has another tokenizer.
            UsageError: the source "model" has no model.
        """
        from d3cli.decode.draft.drafter import Drafter

        if self._drafter is None or source != self._source:
            self._drafter = Drafter.for_model(model, source, draft_model=self.draft_model)
            self._source = source
        return self._drafter

    def forget(self) -> None:
        """Drops the drafter, because another model begins."""
        self._drafter = self._source = None
