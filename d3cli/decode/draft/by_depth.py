"""Drafts by D³: the same model with units dropped, and the same KV cache.

A draft is a short D³ reply of its own. The token to go on from is token 0, so the first drafted
token is token 1 of the schedule, and the decay runs within the draft. There is no warm-up: a draft
at full depth would cost what it saves.
"""

from dataclasses import replace

from d3cli.decode.draft.source import Draft, Drawing, Offer, ReplyContext
from d3cli.decode.loop import SourceName, decode_step
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel


class DepthSource:
    """Drafts with the model that verifies, at less than full depth."""

    name: SourceName = "depth"

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._schedule = DepthSchedule.full(model.num_layers)
        # Bytes of a step by the number of units dropped: adding them up for each takes too long.
        self._bytes_read = [model.weight_bytes.total]

    @property
    def cost(self) -> float:
        return self._bytes_read[self._schedule.num_dropped(1)] / self._bytes_read[0]

    def begin(self, reply: ReplyContext) -> None:
        self._schedule = replace(reply.schedule, start=0)
        self._bytes_read = self._model.weight_bytes.read_by_dropped(self._schedule.skip_order)

    def offer(self, reply: ReplyContext) -> Offer | None:  # noqa: ARG002 - see `begin`
        """Nothing where the schedule drops nothing: full depth cannot draft for itself."""
        return Offer() if self._schedule.dropped(1) else None

    def draft(self, reply: ReplyContext, length: int) -> Draft:
        """Leaves the cache as it was, also when it is interrupted."""
        cache, drawing, held, read = reply.cache, Drawing(reply), reply.cache.position, 0
        try:
            for step in range(1, length + 1):
                dropped = self._schedule.dropped(step)
                read += self._bytes_read[len(dropped)]
                if not drawing.add(decode_step(self._model, cache, drawing.token_ids[-1], dropped)):
                    break
        finally:
            cache.crop(held)
        return drawing.draft(self.name, read)
