"""How fast a model scores documents on this machine."""

import time
from collections.abc import Sequence

from d3cli.depth.schedule import DepthSchedule
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, batch_rows
from d3cli.scoring.one_pass import score

# The longest pass, in seconds, after which the pace is measured on more documents.
LONG = 2.0


def measure_pace(model: LoadedModel, documents: Sequence[Document]) -> float:
    """Positions per second of a full-depth pass with scores, over a batch of the usual size."""
    rows = batch_rows(model, documents, range(len(documents)))
    batch = [documents[row] for row in rows[len(rows) // 2]]
    full = DepthSchedule.full(model.num_layers)
    # The first pass also reads the weights from disk, so it measures nothing.
    score(model, batch[:1], full)
    for count in (1, 8):
        part = batch[:count]
        begun = time.monotonic()
        score(model, part, full)
        took = time.monotonic() - begun
        if took > LONG:
            break
    return len(part) * max(map(len, part)) / max(took, 1e-6)
