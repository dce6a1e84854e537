"""How much a calibration can look at in its time: the documents, the order, an estimate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from d3cli.base.errors import CalibrationError, Setting, UsageError
from d3cli.calibrate.evaluator import WITH_REUSE
from d3cli.calibrate.mixed_order import SCORED_PREFIXES
from d3cli.calibrate.order import LEAST_INFLUENCE, PREVIOUS_BEST
from d3cli.calibrate.race import ENTRANTS, FINALISTS, SAFE_SHARES, SECOND_ROUND
from d3cli.calibrate.texts import MIN_DOCUMENTS, MIN_TOKENS
from d3cli.calibrate.unit_order import SearchKind, kind_in_words
from d3cli.depth.prompt_order import MIN_POSITIONS
from d3cli.scoring.documents import Document

# A search that is expected to take more than this many times the given time is refused.
HOPELESS = 2.0
# An interval over fewer documents means little.
MIN_HALF = MIN_DOCUMENTS // 2
# If a larger share of the prompts is too short to decide an order, such orders are not searched.
MAX_SHORT = 0.5
# Passes over the unseen half: full depth, and its prompts again; then what may be tested, constant
# depth and decay.
UNSEEN_PASSES = 2 + (6 + 2) * WITH_REUSE
# Forms of the weights that are searched, as expected; the others are measured at full depth only.
SEARCHED_FORMS = 2


class _Orders(NamedTuple):
    """The orders that are searched; see `Budget`."""

    greedy: bool
    fixed: bool
    by_prompt: bool


GREEDY, INFLUENCE = _Orders(True, True, False), _Orders(False, True, False)
PROMPT = _Orders(False, False, True)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the search will look at.

    Attributes:
        search, unseen: the documents of the two halves.
        stages: the number of search documents in each round.
        kinds: the kinds of units to search.
        greedy: whether an order for all prompts is measured greedily; else it is by influence.
        fixed: whether an order for all prompts is searched.
        by_prompt: whether each prompt's own order is searched.
        positions: the work, in token positions at full depth.
        searching: the part of it that is the search; the rest is the test.
        seconds: the time given.
        estimate: the seconds that it is expected to take.
        search_deadline: seconds after which the search leaves the rest to the test.
        left_out: what was left out for lack of time; empty where nothing was.
    """

    search: Sequence[Document]
    unseen: Sequence[Document]
    stages: tuple[int, int, int]
    kinds: tuple[SearchKind, ...]
    greedy: bool
    fixed: bool
    by_prompt: bool
    positions: float
    searching: float
    seconds: float
    estimate: float
    search_deadline: float
    left_out: tuple[str, ...]

    def is_more_thorough(self, than: "Budget") -> bool:
        """Whether it looks at more than another one, and leaves out nothing that this looks at."""
        here, there = (
            (len(one.search), one.greedy, one.by_prompt, len(one.kinds)) for one in (self, than)
        )
        return here != there and all(a >= b for a, b in zip(here, there, strict=True))


def check_halves(search: Sequence[Document], unseen: Sequence[Document]) -> None:
    """Refuses halves that are too small for an interval over documents.

    Raises:
        UsageError: with the size of each half.
    """
    if _enough(search, unseen):
        return
    tokens = [sum(len(document.response_ids) for document in half) for half in (search, unseen)]
    raise UsageError(
        f"there is too little text: the halves have {len(search)} and {len(unseen)} documents, "
        f"with {tokens[0]:,} and {tokens[1]:,} response tokens",
        (
            f"each half needs {MIN_HALF} documents and {MIN_TOKENS // 2} tokens: raise ",
            Setting("documents"),
            " or use other ",
            Setting("data"),
        ),
    )


def make_budget(
    search: Sequence[Document],
    unseen: Sequence[Document],
    *,
    units: Mapping[SearchKind, int],
    order: Literal["influence", "greedy", "prompt", "auto"],
    pace: float,
    seconds: float,
    search_pace: float | None = None,
    forms: int = 1,
    all_kinds: bool = True,
    all_documents: bool = False,
) -> Budget:
    """The most thorough search that fits into `seconds`, or the smallest one where none fits.

    Where several forms can at least be compared at full depth, nothing is refused: each form has a
    budget of its own later, and may then not be searched.

    Args:
        units: how many units each kind has.
        pace: full-depth positions per second.
        search_pace: that of the search, if an earlier search has shown it; None is `pace`.
        forms: how many forms of the weights are measured.
        all_kinds: search all kinds, however long it takes; else the first one may be enough.
        all_documents: use all documents.

    Raises:
        CalibrationError: even the smallest search would take far longer, and so would comparing
            the forms.
        UsageError: each prompt's own order is asked for, and most prompts are too short for one.
    """
    halves = [len(search)]
    while not all_documents and _enough(search[: halves[-1] // 2], unseen[: halves[-1] // 2]):
        halves.append(halves[-1] // 2)
    orders = _orders(order, search)
    paces = (search_pace or pace, pace)
    budgets = [
        _budget(search[:half], unseen[:half], units, each, paces, seconds, forms)
        for each in orders
        # On very few documents, a greedy order is noise: influence on more of them comes first.
        for half in (halves if not (each.greedy and order == "auto") else halves[:2])
    ]
    if not all_kinds:
        first = dict(list(units.items())[:1])
        budgets += [
            _budget(search[:half], unseen[:half], first, orders[-1], paces, seconds, forms)
            for half in halves[-2:]
        ]
    chosen = next((budget for budget in budgets if budget.estimate <= seconds), budgets[-1])
    if chosen.estimate > HOPELESS * seconds:
        comparing = forms * sum(map(len, [*chosen.search, *chosen.unseen])) / pace
        if forms == 1 or HOPELESS * comparing > seconds:
            raise _far_too_long(chosen.estimate, seconds)
        enough = (
            f"schedules are searched only if time is left; {in_words(chosen.estimate)} are enough"
        )
        left_out = [enough, *documents_left_out(chosen, len(search) + len(unseen))]
        return replace(chosen, estimate=seconds, left_out=tuple(left_out))
    return replace(chosen, left_out=_left_out(budgets[0], chosen))


def _far_too_long(estimate: float, seconds: float) -> CalibrationError:
    minutes = math.ceil(estimate / 60)
    left = f"only {in_words(seconds)} are left" if seconds >= 1 else "no time is left"
    return CalibrationError(
        f"this calibration takes about {in_words(estimate)} here, but {left}",
        (
            "raise ",
            Setting("max_seconds"),
            f" to {minutes} minute{'s' * (minutes > 1)}, or use a GPU",
        ),
    )


def short_prompts(documents: Sequence[Document]) -> int:
    """How many documents have prompts too short to decide an order; these run at full depth."""
    return sum(len(document.prompt_ids) < MIN_POSITIONS for document in documents)


def _orders(
    order: Literal["influence", "greedy", "prompt", "auto"], search: Sequence[Document]
) -> list[_Orders]:
    """The orders to search, the most thorough choice first."""
    short = short_prompts(search)
    too_short = short > MAX_SHORT * len(search)
    if order == "prompt" and too_short:
        raise UsageError(
            f"{short} of {len(search)} prompts have fewer than {MIN_POSITIONS} tokens, too few to "
            "decide an order",
            ("use other ", Setting("data"), ", or another ", Setting("order")),
            field="order",
        )
    auto = [GREEDY, INFLUENCE]
    if not too_short:
        auto = [
            orders._replace(by_prompt=by_prompt) for orders in auto for by_prompt in (True, False)
        ]
    return {"greedy": [GREEDY], "influence": [INFLUENCE], "prompt": [PROMPT], "auto": auto}[order]


def _enough(*halves: Sequence[Document]) -> bool:
    """Whether each half has enough documents and tokens."""
    return all(
        len(half) >= MIN_HALF
        and sum(len(document.response_ids) for document in half) >= MIN_TOKENS // 2
        for half in halves
    )


def in_words(seconds: float) -> str:
    """A duration in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _left_out(whole: Budget, chosen: Budget) -> tuple[str, ...]:
    left_out = []
    if chosen.kinds != whole.kinds:
        left_out.append(f"only {kind_in_words(chosen.kinds[0])} are searched")
    if chosen.greedy != whole.greedy:
        left_out.append("the order is by influence instead of greedy")
    if chosen.by_prompt != whole.by_prompt:
        left_out.append("each prompt's own order is not searched")
    left_out += documents_left_out(chosen, len(whole.search) + len(whole.unseen))
    return tuple(left_out)


def documents_left_out(chosen: Budget, available: int) -> list[str]:
    """That a budget uses fewer documents than there are; empty if it uses all."""
    used = len(chosen.search) + len(chosen.unseen)
    return [f"{used} of {available} documents are used"] if used < available else []


def _budget(
    search: Sequence[Document],
    unseen: Sequence[Document],
    units: Mapping[SearchKind, int],
    orders: _Orders,
    paces: tuple[float, float],
    seconds: float,
    forms: int,
) -> Budget:
    """A budget.

    Args:
        paces: positions per second, of the search and of the test.
    """
    half = len(search)
    few = max(half // 5, min(8, half // 2))
    more = max(few + 1, half // 2)
    stages = (few, more, half)
    at_few, at_more, at_all = (sum(map(len, search[:stage])) for stage in stages)
    work = 2.2 * at_all
    for kind, count in units.items():
        planes = kind in ("mixed", "plane")
        prefixes = min(count, SCORED_PREFIXES) if planes else 0.5 * count
        race = prefixes * WITH_REUSE * at_more
        race += (ENTRANTS * at_few + SECOND_ROUND * at_more) * WITH_REUSE
        race += (FINALISTS + len(SAFE_SHARES)) * WITH_REUSE * at_all
        if orders.fixed:
            work += at_few * (1 if kind == "layer" else 3)  # a sublayer's layer runs again
            if orders.greedy and planes:
                work += count * WITH_REUSE * at_few
            elif orders.greedy:
                rounds = 0.5 * count
                work += (count + rounds * (PREVIOUS_BEST + LEAST_INFLUENCE)) * WITH_REUSE * at_few
            work += race
        if (
            orders.by_prompt and kind != "mixed"
        ):  # influence, and what the documents share when scored one by one
            work += 2.2 * at_all + race
    searched = min(SEARCHED_FORMS, forms)
    work *= searched
    if forms > 1:
        work += forms * (at_all + sum(map(len, unseen)))
    test = searched * UNSEEN_PASSES * sum(map(len, unseen))
    seconds_of_test = test / paces[1]
    return Budget(
        search=search,
        unseen=unseen,
        stages=stages,
        kinds=tuple(units),
        greedy=orders.greedy,
        fixed=orders.fixed,
        by_prompt=orders.by_prompt,
        positions=work + test,
        searching=work,
        seconds=seconds,
        estimate=work / paces[0] + seconds_of_test,
        search_deadline=max(seconds / 3, seconds - seconds_of_test),
        left_out=(),
    )
