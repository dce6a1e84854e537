"""Schedules that may draft for lossless replies.

A draft is a few tokens long, so each schedule drops the same units at every drafted token. Runs
nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from d3cli.calibrate.costs import StepCosts
from d3cli.calibrate.influence import order_by_influence
from d3cli.calibrate.mixed_order import in_legal_order
from d3cli.calibrate.order import units_of
from d3cli.depth.schedule import DepthSchedule, static_schedule
from d3cli.depth.units import UnitKind, parse_unit
from d3cli.model.model import LoadedModel

# The prefixes of an order that are tried, as shares of its units.
PREFIXES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
# A predicted cost is at least so much of a step: the outer layers and the LM head always run.
LEAST_COST = 0.05


@dataclass(frozen=True, slots=True)
class DraftCandidate:
    """A schedule that may draft.

    Attributes:
        order: where its units come from, in words.
        cost: of a drafted token, in steps at full depth; as predicted by `draft_candidates`.
    """

    order: str
    schedule: DepthSchedule
    cost: float


def units_to_rank(model: LoadedModel) -> list[str]:
    """All units that a draft of this model may leave out."""
    kinds: list[UnitKind] = ["plane"] if model.weight_bytes.is_nested else []
    kinds += ["sublayer", "layer"] if model.gate.family.has_sublayers else ["layer"]
    return [name for kind in kinds for name in units_of(model, kind)]


def draft_candidates(
    model: LoadedModel, influence: Mapping[str, float], costs: StepCosts
) -> list[DraftCandidate]:
    """Prefixes of the orders over what a model can drop.

    Low planes leave no key or value missing and lose the least per byte, so all of them go before
    a sublayer or a layer does.

    Args:
        influence: of `units_to_rank`.
    """
    ranked = order_by_influence(model, influence)
    by_kind: dict[UnitKind, list[str]] = {"plane": [], "sublayer": [], "layer": []}
    for name in ranked:
        by_kind[parse_unit(name).kind].append(name)
    planes = by_kind["plane"]
    own = model.origin.schedule
    stored = own.skip_order if isinstance(own, DepthSchedule) else ()
    coarse = {
        "sublayers by influence": by_kind["sublayer"],
        "layers by influence": by_kind["layer"],
        "the order of the model's own schedule": [u for u in stored if not parse_unit(u).low],
    }
    drops = [("low planes by influence", names) for names in [*_prefixes(planes), planes] if names]
    for words, order in coarse.items():
        drops += [(words, [*planes, *names]) for names in _prefixes(in_legal_order(order))]
    found: dict[frozenset[str], DraftCandidate] = {}
    for words, names in drops:
        schedule = static_schedule(model.weight_bytes, names)
        cost = 1 - sum(costs.saved(names)) / costs.seconds
        candidate = DraftCandidate(words, schedule, max(LEAST_COST, cost))
        found.setdefault(frozenset(names), candidate)
    return list(found.values())


def _prefixes(order: Sequence[str]) -> Iterator[Sequence[str]]:
    counts = {max(1, round(share * len(order))) for share in PREFIXES}
    return (order[:count] for count in sorted(counts) if order)
