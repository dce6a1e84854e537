"""Drafts by D³: the same model with units dropped, and the same KV cache.

A draft is a short D³ reply of its own. The token to go on from is token 0, so the first drafted
token is token 1 of the schedule, and the decay runs within the draft. There is no warm-up: a draft
at full depth would cost what it saves.
"""

from dataclasses import replace

from d3cli.decode.draft.source import Draft, Offer, ReplyContext
from d3cli.decode.loop import SourceName, decode_step
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel


class DepthSource:
    """Drafts with the model that verifies, at less than full depth."""

    name: SourceName = "depth"

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._reply: ReplyContext | None = None
        self._schedule = DepthSchedule.full(model.num_layers)

    @property
    def cost(self) -> float:
        weights = self._model.weight_bytes
        return weights.read(self._schedule.dropped(1)) / weights.total

    def begin(self, reply: ReplyContext) -> None:
        self._reply, self._schedule = reply, replace(reply.schedule, start=0)

    def offer(self) -> Offer | None:
        """Nothing where the schedule drops nothing: full depth cannot draft for itself."""
        return Offer() if self._schedule.dropped(1) else None

    def draft(self, length: int) -> Draft:
        """Leaves the cache as it was, also when it is interrupted."""
        reply = self._reply
        assert reply is not None
        cache, sampler, schedule = reply.cache, reply.sampler, self._schedule
        token_ids, held = list(reply.token_ids), cache.position
        drafted, probabilities, read = [], [], 0
        try:
            for step in range(1, length + 1):
                dropped = schedule.dropped(step)
                logits = decode_step(self._model, cache, token_ids[-1], dropped)
                token_id, drawn_from = sampler.draft(logits, token_ids)
                token_ids.append(token_id)
                drafted.append(token_id)
                probabilities += drawn_from
                read += self._model.weight_bytes.read(dropped)
        finally:
            cache.crop(held)
        return Draft(drafted, self.name, probabilities=probabilities, bytes_read=read)
