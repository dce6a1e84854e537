"""What drafting and verifying take on this machine, in steps at full depth."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from statistics import median

from d3cli.calibrate.costs import StepCosts, measure_costs
from d3cli.decode.loop import decode_step
from d3cli.decode.lossless import read_few
from d3cli.model.decoder_pass import MOST_TOKENS
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.step_times import fill_cache

# Times that each pass is measured, after one that warms up.
PASSES = 7


class DraftClock:
    """Times passes over the end of one reply.

    Each pass is compared with a plain step right before it, so that other programs slow both.
    """

    def __init__(self, model: LoadedModel, document: Document) -> None:
        self._model, self._document = model, document
        self._cache = fill_cache(model, document)
        token_ids = [*document.prompt_ids, *document.response_ids]
        self._held = max(0, self._cache.position - MOST_TOKENS)
        self._read = list(islice(cycle(token_ids[self._held :]), MOST_TOKENS))

    def steps(self) -> StepCosts:
        """What steps cost, from which that of every schedule is predicted."""
        return measure_costs(self._model, self._document)

    def verifications(self) -> list[float]:
        """What the pass that verifies 1, 2, ... drafted tokens costs."""
        return [
            max(1.0, self._cost(partial(self._verify, rows))) for rows in range(2, MOST_TOKENS + 1)
        ]

    def drafted(self, dropped: Sequence[str]) -> float:
        """What a token costs that is drafted without these units."""
        return self._cost(
            lambda: decode_step(self._model, self._cache, self._read[0], dropped).argmax().item()
        )

    def _verify(self, rows: int) -> None:
        read_few(self._model, self._cache, self._read[:rows]).argmax(dim=-1).tolist()

    def _cost(self, run: Callable[[], object]) -> float:
        found = []
        for number in range(PASSES + 1):
            step = self._seconds(partial(self._verify, 1))
            seconds = self._seconds(run)
            if number:
                found.append(seconds / step)
        return median(found)

    def _seconds(self, run: Callable[[], object]) -> float:
        """Seconds until the chosen tokens are on the CPU, so a GPU has finished."""
        self._cache.crop(self._held)
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
