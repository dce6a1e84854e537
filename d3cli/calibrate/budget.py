"""How much a calibration can look at in the time it has: documents, order, an estimate."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from d3cli.base.errors import CalibrationError, UsageError
from d3cli.calibrate.evaluator import WITH_REUSE
from d3cli.calibrate.order import BEST_BEFORE, LEAST_INFLUENCE
from d3cli.calibrate.race import ENTRANTS, FINALISTS, SAFE_SHARES, SECOND_ROUND
from d3cli.calibrate.texts import FEWEST_DOCUMENTS, FEWEST_TOKENS
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import UnitKind
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document, batch_rows
from d3cli.scoring.one_pass import score

# Seconds that a pass may take to measure the pace.
LONG = 2.0
# A search that is expected to take so many times the time that there is, is not begun.
HOPELESS = 2.0
# Below so many documents in a half, an interval over documents means little.
LEAST_HALF = FEWEST_DOCUMENTS // 2
# Passes over the unseen half: full depth and what is shared, for the tests and once more for the
# comparison; then tests, and the chosen one, constant depth and decay.
UNSEEN_PASSES = 2 * 2 + (4 + 2 + 3) * WITH_REUSE


@dataclass(frozen=True, slots=True)
class Plan:
    """What the search will look at.

    Attributes:
        search, unseen: the documents of the two halves.
        stages: how many of the search half the rounds look at.
        kinds: of units, to be searched.
        greedy: whether the order is measured greedily; else by influence.
        positions: work, in token positions at full depth.
        seconds: all the time there is.
        estimate: seconds that it is expected to take.
        search_deadline: seconds after which the search leaves the rest to the test.
        left_out: what time did not allow; empty where nothing was left out.
    """

    search: Sequence[Document]
    unseen: Sequence[Document]
    stages: tuple[int, int, int]
    kinds: tuple[UnitKind, ...]
    greedy: bool
    positions: float
    seconds: float
    estimate: float
    search_deadline: float
    left_out: str


def measure_pace(model: LoadedModel, documents: Sequence[Document]) -> float:
    """Positions per second of a full-depth pass with scores, over a batch of the usual size."""
    rows = batch_rows(model, documents, range(len(documents)))
    batch = [documents[row] for row in rows[len(rows) // 2]]
    full = DepthSchedule.full(model.num_layers)
    # The first pass warms up; where one document takes long already, it is measured itself.
    for count in (1, 1, 8):
        part = batch[:count]
        begun = time.monotonic()
        score(model, part, full)
        took = time.monotonic() - begun
        if took > LONG:
            break
    return len(part) * max(map(len, part)) / max(took, 1e-6)


def make_plan(
    search: Sequence[Document],
    unseen: Sequence[Document],
    *,
    units: Mapping[UnitKind, int],
    order: Literal["influence", "greedy", "auto"],
    pace: float,
    seconds: float,
    all_kinds: bool = True,
    all_documents: bool = False,
) -> Plan:
    """The most thorough search that fits into `seconds`, or the least one where none fits.

    Args:
        units: how many units each kind has.
        pace: full-depth positions per second.
        all_kinds: search them all, however long it takes; else the first one may do.
        all_documents: never use fewer than there are.

    Raises:
        UsageError: there is too little text in a half.
        CalibrationError: even the least search would take far longer.
    """
    if not _enough(search, unseen):
        tokens = [sum(len(document.response_ids) for document in half) for half in (search, unseen)]
        raise UsageError(
            f"there is too little text: halves of {len(search)} and {len(unseen)} documents, with "
            f"{tokens[0]:,} and {tokens[1]:,} response tokens",
            f"each needs {LEAST_HALF} documents and {FEWEST_TOKENS // 2} tokens: give more "
            "--documents or --data",
        )
    halves = [len(search)]
    while not all_documents and _enough(search[: halves[-1] // 2], unseen[: halves[-1] // 2]):
        halves.append(halves[-1] // 2)
    orders = {"greedy": [True], "influence": [False], "auto": [True, False]}[order]
    plans = [
        _plan(search[:half], unseen[:half], units, greedy, pace, seconds)
        for greedy in orders
        # Greedy on very few documents orders noise: influence on more of them comes first.
        for half in (halves if not (greedy and order == "auto") else halves[:2])
    ]
    if not all_kinds:
        first = dict(list(units.items())[:1])
        plans += [
            _plan(search[:half], unseen[:half], first, orders[-1], pace, seconds)
            for half in halves[-2:]
        ]
    chosen = next((plan for plan in plans if plan.estimate <= seconds), plans[-1])
    if chosen.estimate > HOPELESS * seconds:
        raise CalibrationError(
            f"this calibration takes about {in_words(chosen.estimate)} here, and --max-time leaves "
            f"{in_words(seconds)}",
            f"give --max-time {math.ceil(chosen.estimate / 60)}m, or use a GPU",
        )
    return replace(chosen, left_out=_left_out(plans[0], chosen))


def _enough(*halves: Sequence[Document]) -> bool:
    """Whether each half has the documents and tokens without which an interval means little."""
    return all(
        len(half) >= LEAST_HALF
        and sum(len(document.response_ids) for document in half) >= FEWEST_TOKENS // 2
        for half in halves
    )


def in_words(seconds: float) -> str:
    """A duration for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _left_out(whole: Plan, chosen: Plan) -> str:
    left_out = []
    if chosen.kinds != whole.kinds:
        left_out.append(f"only {chosen.kinds[0]}s are searched")
    if chosen.greedy != whole.greedy:
        left_out.append("the order is by influence instead of greedy")
    used, there = (len(plan.search) + len(plan.unseen) for plan in (chosen, whole))
    if used < there:
        left_out.append(f"{used} of {there} documents are used")
    return " and ".join(left_out)


def _plan(
    search: Sequence[Document],
    unseen: Sequence[Document],
    units: Mapping[UnitKind, int],
    greedy: bool,
    pace: float,
    seconds: float,
) -> Plan:
    half = len(search)
    few = max(half // 5, min(8, half // 2))
    more = max(few + 1, half // 2)
    stages = (few, more, half)
    at_few, at_more, at_all = (sum(map(len, search[:stage])) for stage in stages)
    work = 2.2 * at_all
    for kind, count in units.items():
        work += at_few * (1 if kind == "layer" else 3)  # influence: a sublayer's layer runs again
        if greedy:
            rounds = 0.5 * count
            work += (count + rounds * (BEST_BEFORE + LEAST_INFLUENCE)) * WITH_REUSE * at_few
        work += 0.5 * count * WITH_REUSE * at_more
        work += (ENTRANTS * at_few + SECOND_ROUND * at_more) * WITH_REUSE
        work += (FINALISTS + len(SAFE_SHARES)) * WITH_REUSE * at_all
    test = UNSEEN_PASSES * sum(map(len, unseen))
    return Plan(
        search=search,
        unseen=unseen,
        stages=stages,
        kinds=tuple(units),
        greedy=greedy,
        positions=work + test,
        seconds=seconds,
        estimate=(work + test) / pace,
        search_deadline=max(seconds / 3, seconds - test / pace),
        left_out="",
    )
