"""The order in which a prompt would have units dropped, measured as the prefill of a reply does."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from d3cli.decode.loop import prefill
from d3cli.depth.prompt_order import MIN_POSITIONS, PromptSchedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitKind
from d3cli.model.influence_table import InfluenceHistory, InfluenceTable
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel


class MeasuredPrompt:
    """A prompt, and the influence of the model's units on it, measured where it is asked for.

    What is read here is no history: it does not order the units of other, shorter prompts.
    """

    def __init__(self, model: LoadedModel, prompt_ids: Sequence[int]) -> None:
        self._model, self._prompt_ids = model, prompt_ids
        self._influence: dict[UnitKind, Mapping[str, float]] = {}

    @property
    def is_long_enough(self) -> bool:
        """Whether the prompt decides an order; a shorter one runs at full depth."""
        return len(self._prompt_ids) >= MIN_POSITIONS

    def read(self, cache: KVCache, kind: UnitKind | None) -> Tensor:
        """Prefills an empty cache and measures the units of a kind.

        Returns:
            The hidden state that predicts the first response token, ``[1, 1, H]``.

        Raises:
            GenerationError: the influence of a unit is not finite.
        """
        table = None
        if kind is not None and self.is_long_enough:
            table = InfluenceTable(self._model.num_layers, InfluenceHistory())
            table.measure(kind)
        for chunk in prefill(self._model, cache, self._prompt_ids, influence=table):
            hidden = chunk.hidden[-1:]
        if table is not None and kind is not None:
            self._influence[kind] = table.mean(len(self._prompt_ids))
        return hidden[None]

    def ordered(self, schedule: PromptSchedule) -> DepthSchedule:
        """The schedule in this prompt's order; at full depth if the prompt is too short.

        Raises:
            GenerationError: the influence of a unit is not finite.
        """
        if not self.is_long_enough:
            return schedule.without_order()
        if schedule.kind not in self._influence:
            self.read(self._model.new_cache(), schedule.kind)
        return schedule.ordered(self._influence[schedule.kind])
