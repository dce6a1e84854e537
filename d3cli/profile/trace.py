"""The record of a profiled run: tokens, depths, bytes, times and hardware.

docs/trace.md describes the format, `trace_file` reads and writes it. Knows nothing of how a run is
made or drawn; no torch.
"""

from dataclasses import dataclass
from typing import Any

from d3cli.base.errors import ScheduleError
from d3cli.depth.prompt_order import Schedule, schedule_from_json
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import WeightBytes
from d3cli.profile.trace_checks import check_bytes, check_passes, check_shared_bytes
from d3cli.profile.trace_fields import (
    Bytes,
    Count,
    NotNegative,
    Number,
    Positive,
    SamplingValue,
    Seed,
    check_finite,
    require,
)
from d3cli.profile.trace_lossless import DraftedBy, DraftingTrace, LosslessTrace
from d3cli.profile.trace_model import MachineTrace, ModelTrace
from d3cli.profile.trace_times import ClockTrace, LayersTrace, RepeatTrace

SCHEMA = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """One token of a reply. A value that was not asked for, or does not exist, is None.

    The fields are the columns of the CSV, in this order. Add new ones at the end.

    Attributes:
        step: ``t``, counted from 0; token 0 comes from the prefill.
        text: the text that the token completed; empty if it ends inside a character.
        depth: layers used to predict it.
        dropped_units: number of units dropped, from the front of the skip order; None if they are
            not a prefix of it.
        active_layers: layers of which at least one part ran.
        ms: milliseconds of the decode step, mean over repeats; None for token 0. Tokens of one pass
            share its time equally.
        ms_sd: their standard deviation over repeats.
        logprob: raw natural log-probability, before penalties, temperature and warpers.
        entropy: of the raw distribution, in nats.
        top_token_id: the raw argmax; penalties and sampling may have chosen another token.
        full_logprob: the token's log-probability at full depth.
        full_token_id, full_text: full depth's own choice.
        kl: ``KL(full depth || D³)`` in nats.
        needed_depth: the smallest constant depth that chooses as full depth does, and all above it.
        saturation_layer: number of layers after which the logit lens keeps full depth's choice.
        bytes_read: bytes of weights read to predict it. The prefill reads all of them for token 0;
            byte ratios count the decode steps only. Tokens of one pass share its bytes, and those
            of its draft, equally.
        pass_number: of the pass that predicted it, in a lossless reply, counted from 0; None for
            token 0.
        drafted_by: what drafted it, if full depth accepted it; None if full depth chose it by
            itself.
        rejected_text: the text of the drafted tokens that full depth threw away here, and put this
            token in place of; None if there were none.
    """

    step: Count
    token_id: Count
    text: str
    depth: Positive
    dropped_units: Count | None
    active_layers: Count
    ms: NotNegative | None
    ms_sd: NotNegative | None = None
    logprob: Number
    entropy: Number
    top_token_id: Count
    full_logprob: Number | None = None
    full_token_id: Count | None = None
    full_text: str | None = None
    kl: Number | None = None
    needed_depth: Positive | None = None
    saturation_layer: Count | None = None
    bytes_read: Bytes
    pass_number: Count | None = None
    drafted_by: DraftedBy | None = None
    rejected_text: str | None = None

    def __post_init__(self) -> None:
        check_finite(self)

    @property
    def agrees(self) -> bool | None:
        """Whether its raw argmax is full depth's; None if full depth was not asked for."""
        return None if self.full_token_id is None else self.top_token_id == self.full_token_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyTrace:
    """One prompt and its reply.

    Attributes:
        prompt: the user's last message.
        prompt_sha256: of the ids of all prompt tokens, in decimal, separated by spaces. It covers
            the system prompt and earlier messages.
        finish_reason: "stop", "length", "context" or "interrupted".
        seed: the seed of its sampling; None if it was greedy.
        repeats: its timed runs; an interrupted run may have none.
        clock, layers: None if not asked for.
        skip_order: the order that the prompt decided, empty if the reply ran at full depth; None if
            the run has one order for all replies.
        needed_order: as in `Trace`, if each reply has its own.
        lossless: its passes; None unless the run is lossless.
    """

    prompt: str
    prompt_sha256: str
    prompt_tokens: Count
    finish_reason: str
    seed: Seed | None = None
    tokens: tuple[TokenTrace, ...]
    repeats: tuple[RepeatTrace, ...]
    clock: ClockTrace | None = None
    layers: LayersTrace | None = None
    skip_order: tuple[str, ...] | None = None
    needed_order: tuple[str, ...] | None = None
    lossless: LosslessTrace | None = None

    def __post_init__(self) -> None:
        steps = [token.step for token in self.tokens]
        require(steps == list(range(len(steps))), "the steps do not count from 0")
        if self.lossless is not None:
            check_passes(self.tokens, self.lossless.passes)
        else:
            drafted = [
                token
                for token in self.tokens
                if (token.pass_number, token.drafted_by, token.rejected_text) != (None,) * 3
            ]
            require(not drafted, "tokens were drafted, but the reply has no passes")


class _Computed:
    """Holds what follows from a trace's fields, so that it is no field itself.

    Attributes:
        _asked: the depth schedule that was asked for.
        _in_orders: it in the orders of its prompts; or the only one, under None. Thousands of
            replies may share one.
        _needed_orders: the skip orders of needed depths that were checked.
    """

    __slots__ = ("_asked", "_in_orders", "_needed_orders")
    _asked: Schedule
    _in_orders: dict[tuple[str, ...] | None, DepthSchedule]
    _needed_orders: set[tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace(_Computed):
    """A profiled run.

    Attributes:
        created: ISO 8601 in UTC.
        interrupted: whether the run was stopped before its end.
        versions: of d3cli, torch, transformers and others, by name.
        schedule: the depth schedule as JSON, with its source. If its `order` is "prompt", each
            reply has its own `skip_order`. Of a lossless run, it is full depth.
        sampling: the settings used; the seed is in `ReplyTrace.seed`.
        max_tokens: None if the context was the limit.
        stop: texts that ended a reply; its tokens include them.
        raw: whether prompts went without a chat template.
        think: whether thinking was asked for (True), forbidden (False) or left to the model (None).
        compared: whether full depth's values were asked for.
        needed_order: the skip order along which `needed_depth` was searched; None if it was not
            asked for, or each reply has its own.
        peak_memory_bytes: during the timed runs, before any comparison; of the GPU if the model is
            on one.
        lossless: what was to draft; None unless the run is lossless.
    """

    schema: int = SCHEMA
    created: str
    interrupted: bool
    versions: dict[str, str | None]
    machine: MachineTrace
    model: ModelTrace
    schedule: dict[str, Any]
    sampling: dict[str, SamplingValue]
    max_tokens: Count | None
    stop: tuple[str, ...] = ()
    raw: bool = False
    think: bool | None = None
    compared: bool = False
    needed_order: tuple[str, ...] | None = None
    peak_memory_bytes: Bytes
    replies: tuple[ReplyTrace, ...]
    lossless: DraftingTrace | None = None

    def __post_init__(self) -> None:
        asked = schedule_from(self.schedule)
        object.__setattr__(self, "_asked", asked)
        object.__setattr__(self, "_in_orders", {})
        object.__setattr__(self, "_needed_orders", set())
        layers, weights = self.model.num_layers, self.model.weight_bytes
        require(asked.num_layers == layers, "the schedule is for another number of layers")
        require(len(weights.layers) == layers, "layer_bytes does not have one entry for each layer")
        require(weights.total > 0, "the model has no weights")
        self.model.check_planes(asked.units, "the schedule")
        drafting = None
        if self.lossless is not None:
            drafting = schedule_from(self.lossless.schedule)
            require(drafting.num_layers == layers, "the drafts are for another number of layers")
            self.model.check_planes(drafting.units, "the schedule of the drafts")
        read: dict[tuple[str, ...], list[int]] = {}
        for reply in self.replies:
            order = self.schedule_of(reply).skip_order
            if order not in read:
                read[order] = weights.read_by_dropped(order)
            self._check_reply(reply, weights, read[order])
        if drafting is not None:
            for drafted in {each.lossless.skip_order for each in self.replies if each.lossless}:
                _in_order(drafting, drafted)

    def _check_reply(
        self, reply: ReplyTrace, weights: WeightBytes, read_by_dropped: list[int]
    ) -> None:
        """Raises ValueError if a reply does not fit the model, or the run."""
        layers, drafted = self.model.num_layers, reply.lossless
        schedule, needed_order = self.schedule_of(reply), self.needed_order_of(reply)
        if needed_order is not None and needed_order not in self._needed_orders:
            self.model.check_needed_order(needed_order)
            self._needed_orders.add(needed_order)
        times = layers if reply.layers is None else len(reply.layers.layers)
        require(times == layers, "layers does not have one time for each layer")
        for token in reply.tokens:
            dropped = token.dropped_units or 0
            fits = dropped <= len(schedule.skip_order) and token.depth <= layers
            require(fits, f"step {token.step} does not fit the schedule")
            known = token.needed_depth is None or needed_order is not None
            require(known, "needed_depth is given without needed_order")
        is_lossless = self.lossless is not None
        require((drafted is not None) == is_lossless, "only some of the replies are lossless")
        if drafted is None:
            for token in reply.tokens:
                check_bytes(token, weights, read_by_dropped)
            return
        full = all(token.depth == layers and not token.dropped_units for token in reply.tokens)
        require(full, "a lossless reply has a token below full depth")
        check_shared_bytes(reply.tokens, drafted.passes, weights)

    @property
    def depth_schedule(self) -> Schedule:
        """The schedule that was asked for."""
        return self._asked

    def schedule_of(self, reply: ReplyTrace) -> DepthSchedule:
        """The schedule of one reply, in the order that ran.

        Raises:
            ValueError: the reply's order does not fit it.
        """
        if reply.skip_order not in self._in_orders:
            self._in_orders[reply.skip_order] = _in_order(self._asked, reply.skip_order)
        return self._in_orders[reply.skip_order]

    def needed_order_of(self, reply: ReplyTrace) -> tuple[str, ...] | None:
        """The skip order of one reply's needed depths; None if they were not asked for."""
        return self.needed_order if reply.needed_order is None else reply.needed_order


def schedule_from(data: dict[str, Any]) -> Schedule:
    """A trace's schedule.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return schedule_from_json(data)
    except ScheduleError as error:
        raise ValueError(error.message) from error


def _in_order(asked: Schedule, order: tuple[str, ...] | None) -> DepthSchedule:
    """A schedule with the order that a prompt decided, if it has none; raises ValueError."""
    if isinstance(asked, DepthSchedule):
        require(order is None, "a reply has a skip_order, but the schedule has one for all")
        return asked
    if order is None:
        raise ValueError("a reply has no skip_order, and the schedule has none for all")
    try:
        return asked.in_order(order)
    except ScheduleError as error:
        raise ValueError(error.message) from error
