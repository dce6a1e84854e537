"""What a calibration found: values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from d3cli.base.errors import Setting
from d3cli.calibrate.alternatives import Alternative
from d3cli.calibrate.race import Tried
from d3cli.calibrate.space import Candidate, CandidateKey, Sort
from d3cli.calibrate.unit_order import SearchKind
from d3cli.kernels.quantization import Quantization
from d3cli.scoring.intervals import Drop, Losses

Sentence = tuple[str | Setting, ...]  # in pieces, as errors take it


class CalibrationProgress(NamedTuple):
    """What a calibration is doing, and the share of all work that is done."""

    doing: str
    share: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate on the unseen half, compared with full depth (see `Outcome.against`).

    Attributes:
        losses: nats lost by each token.
        layer_ratio, byte_ratio: for replies of the length asked for. If each prompt has its own
            order, they are those of the mean layers and bytes.
        by_position: ``(begin, end, tokens, drop)`` of each stretch of the replies.
        kl: mean nats per response token.
        same_top: share of response tokens for which full depth has the same top choice.
        mean_rank: of the text's own tokens, by D³'s logits.
        full_perplexity: full depth's, on the same tokens.
        floor_tokens: how many tokens ran at the schedule's minimum depth.
        floor_drop: the drop over those tokens.
    """

    candidate: Candidate
    losses: Losses = field(repr=False, compare=False)
    drop: Drop
    by_position: tuple[tuple[int, int, int, float], ...]
    kl: float
    same_top: float
    mean_rank: float
    full_perplexity: float
    floor_tokens: int
    floor_drop: float
    layer_ratio: float
    byte_ratio: float

    @property
    def documents(self) -> int:
        return len(self.losses)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.losses))


@dataclass(frozen=True, slots=True)
class FormTried:
    """One form of the model's weights.

    Attributes:
        quantization: None for the weights as stored.
        form: in words: "bfloat16 int4".
        step_seconds: of a decode step at full depth, as measured.
        full: full depth in this form, on the search half.
        reach: the speed without any low plane; that of full depth if the weights are not nested.
        dominated_by: the form that is faster and loses about as little, so that schedules in this
            one were not searched; empty if they were, or if the form exceeds the target.
        searched: whether schedules in this form were searched.
    """

    quantization: Quantization | None
    form: str
    step_seconds: float
    full: Tried
    reach: float
    dominated_by: str = ""
    searched: bool = False


class UnseenDrop(NamedTuple):
    """A candidate's drop on the unseen half, and whether its upper bound is within the target."""

    candidate: Candidate
    drop: Drop
    held: bool


@dataclass(frozen=True, slots=True)
class Nearest:
    """The smallest drop at which a schedule saves enough, where the target was not met.

    Attributes:
        tried: the schedule and its drop.
        on_unseen_text: whether the drop is that on the unseen half; else it is the search half's.
        target_drop: a target that is likely to be met; None if it would exceed 100%.
    """

    tried: Tried
    on_unseen_text: bool
    target_drop: float | None


@dataclass(frozen=True, slots=True)
class Judged:
    """Full depth's verdict on the replies that a schedule wrote.

    Attributes:
        prompts, tokens: the number of replies, and of all their tokens.
        perplexity: full depth's, on these replies.
        rise: over its perplexity on its own replies to the same prompts; None for those.
    """

    prompts: int
    tokens: int
    perplexity: float
    rise: Drop | None


@dataclass(frozen=True, slots=True)
class DecayVerdict:
    """Constant depth beside decay, at about the same bytes.

    Attributes:
        difference: the decaying schedule's perplexity over the static one's, less 1, on the unseen
            half.
        by_replies: the same of full depth's perplexity on the replies that each wrote; None where
            replies were not asked for.
    """

    static: Measured
    decaying: Measured
    difference: Drop
    by_replies: Drop | None = None

    @property
    def words(self) -> str:
        """Whether decay paid, by fixed text."""
        return decay_paid(self.difference)


def decay_paid(difference: Drop) -> str:
    """The difference between decay and constant depth in words."""
    if difference.high < 0:
        return "decay paid"
    if difference.low > 0:
        return "decay did not pay"
    return "no significant difference on this text"


@dataclass(slots=True)
class Outcome:
    """What a calibration found.

    Attributes:
        chosen: None where nothing saves enough within the target.
        why_not: why nothing was chosen.
        text_fits: whether drops on this text mean anything.
        nearest: where nothing was chosen, the smallest drop at which anything is saved; None where
            no schedule tried saves enough, or the text does not suit the model.
        alternatives: where nothing was chosen, what else makes the model faster here.
        tried: every candidate scored on the search half; each with its last measurement.
        short_prompts: how many documents of the search half have prompts too short to decide an
            order; where each prompt decides it, they run at full depth. If these are most, such
            orders are not searched.
        tested: candidates on the unseen half, in the order of the test.
        orders: the skip order of each kind of unit, for all prompts.
        influence: of every unit.
        against: the form of the weights whose full depth everything is compared with, in words.
        why_not_as_stored: why that is not the model as stored; empty if it is, or if the user chose
            the form.
        forms: the forms of the weights that were tried; empty if there was only one.
        rivals: the fastest of each sort that held on the unseen half, none of them faster than the
            chosen one.
        verdict: constant depth and decay at the same time per reply; None where there was nothing
            to compare.
        no_verdict: why there is no verdict.
        judged: full depth's verdict on replies, by writer; empty where replies were not asked for.
        cut: what was left out for lack of time.
    """

    chosen: Measured | None = None
    why_not: Sentence = ()
    text_fits: bool = True
    nearest: Nearest | None = None
    alternatives: Sequence[Alternative] = ()
    tried: dict[CandidateKey, Tried] = field(default_factory=dict)
    short_prompts: int = 0
    tested: list[UnseenDrop] = field(default_factory=list)
    orders: dict[SearchKind, tuple[str, ...]] = field(default_factory=dict)
    influence: dict[str, float] = field(default_factory=dict)
    against: str = ""
    why_not_as_stored: str = ""
    forms: list[FormTried] = field(default_factory=list)
    rivals: Mapping[Sort, Measured] = field(default_factory=dict)
    verdict: DecayVerdict | None = None
    no_verdict: str = ""
    judged: Mapping[str, Judged] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def form_of(self, candidate: Candidate) -> str:
        """The form of the weights of a candidate, in words."""
        found = (one.form for one in self.forms if one.quantization == candidate.quantization)
        return next(found, self.against)

    def best(self, kind: SearchKind, target: float, *, by_prompt: bool = False) -> Tried | None:
        """The fastest candidate of a kind whose bound on the search half is within the target.

        Args:
            by_prompt: of those whose order each prompt decides; else of the others.
        """
        held = [
            t
            for t in self.tried.values()
            if t.candidate.kind == kind
            and t.candidate.by_prompt == by_prompt
            and t.drop.high <= target
        ]
        return max(held, key=lambda t: t.candidate.speed, default=None)
