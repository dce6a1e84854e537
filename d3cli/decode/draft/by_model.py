"""Drafts by a smaller model with the same tokenizer, at its own full depth.

Speculative decoding as Leviathan et al. (arXiv 2211.17192) and Chen et al. (arXiv 2302.01318)
describe it. The small model has a KV cache of its own, which follows the conversation.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from d3cli.base.errors import ModelError, Setting
from d3cli.decode.agreement import common_prefix
from d3cli.decode.draft.source import Draft, Drawing, Offer, ReplyContext
from d3cli.decode.loop import SourceName, prefill
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel


def check_draft_model(model: LoadedModel, draft_model: LoadedModel) -> None:
    """Raises ModelError unless both models use the same token for each number."""
    check_tokenizer(model.name, model.tokenizer, draft_model)


def check_tokenizer(name: str, tokenizer: Any, draft_model: LoadedModel) -> None:
    """As `check_draft_model`, for a model of which only the tokenizer is loaded."""
    ours, theirs = tokenizer.get_vocab(), draft_model.tokenizer.get_vocab()
    if ours == theirs:
        return
    small, large = sorted((ours, theirs), key=len)
    differing = sum(small.get(token) != id_ for token, id_ in large.items())
    raise ModelError(
        f"{draft_model.name} cannot draft for {name}: their tokenizers differ in "
        f"{differing:,} of {len(large):,} tokens",
        ("take a smaller model of the same family for ", Setting("draft_model")),
    )


class ModelSource:
    """Drafts with another model."""

    name: SourceName = "model"

    def __init__(self, model: LoadedModel, draft_model: LoadedModel) -> None:
        check_draft_model(model, draft_model)
        self.cost = draft_model.weight_bytes.total / model.weight_bytes.total
        self._draft_model = draft_model
        self._rows, self._draft_rows = _rows(model), _rows(draft_model)
        self._cache: KVCache
        self._held: list[int]  # the tokens in the cache
        self._agreed: int  # how many of them the reply is known to have
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes that the small model's KV cache takes."""
        return self._cache.nbytes

    @property
    def room(self) -> int:
        """How many positions that KV cache has room for."""
        return self._cache.room

    def reserve(self, positions: int) -> None:
        """Makes the KV cache get room for so many positions where it needs more."""
        self._cache.reserve(min(positions, self._draft_model.context_length))

    def clear(self) -> None:
        """Empties the KV cache and frees its memory."""
        self._cache, self._held, self._agreed = self._draft_model.new_cache(), [], 0

    def begin(self, reply: ReplyContext) -> None:
        """Keeps what the small model has read of the conversation."""
        self._agreed = common_prefix(self._held, reply.token_ids)
        self.reserve(len(reply.token_ids) + reply.reserve)

    def offer(self, reply: ReplyContext) -> Offer | None:
        """Nothing beyond the small model's own context."""
        room = self._draft_model.context_length - len(reply.token_ids)
        return Offer(most=room) if room > 0 else None

    def draft(self, reply: ReplyContext, length: int) -> Draft:
        """Reads what the small model has not read yet, at first the whole prompt."""
        model, cache, drawing = self._draft_model, self._cache, Drawing(reply)
        token_ids = drawing.token_ids
        kept = common_prefix(self._held[self._agreed :], token_ids[self._agreed : -1])
        self._agreed = min(self._agreed + kept, len(token_ids) - 1)
        cache.crop(self._agreed)  # an interrupted pass left nothing but longer layers
        if max(token_ids[cache.position :]) >= self._draft_rows:
            return Draft(source=self.name)  # a row of the large model that no text has
        read = 0
        try:
            for _ in range(length):
                for chunk in prefill(model, cache, token_ids[cache.position :]):
                    read += model.weight_bytes.total
                    hidden = chunk.hidden[-1]
                if not drawing.add(self._same_rows(model.logits(hidden))):
                    break
        finally:
            self._held = token_ids[: cache.position]
        return drawing.draft(self.name, read)

    def _same_rows(self, logits: Tensor) -> Tensor:
        """As many logits as the model that verifies has: rows beyond the tokenizer's may differ."""
        missing = self._rows - len(logits)
        return pad(logits, (0, missing), value=-torch.inf) if missing else logits


def _rows(model: LoadedModel) -> int:
    rows: int = model.causal_lm.get_input_embeddings().weight.shape[0]
    return rows
