"""A profiled run: replies timed token by token, then compared with full depth.

`Profiler` consumes the engine's iterator like any other caller. It can make a trace at any moment,
so an interrupted run is recorded like a finished one. Knows nothing of terminals or files.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from torch import Tensor

from d3cli.base.errors import Setting, UsageError, Words
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.decode.stats import peak_memory
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import KVCache
from d3cli.model.model import LoadedModel
from d3cli.profile.in_turn import InTurn
from d3cli.profile.record import clock_trace, layers_trace, record_trace
from d3cli.profile.run import Profiled, ProfileOptions, Prompt, Run
from d3cli.profile.trace import Trace
from d3cli.scoring.compare import compare
from d3cli.scoring.documents import Document
from d3cli.scoring.needed_depth import constant_depth_choices, needed_depths, saturation_layers
from d3cli.scoring.one_pass import Scorer
from d3cli.scoring.prompt_orders import MeasuredPrompt
from d3cli.scoring.step_times import PartTimes, StepTimes, fill_cache

# The comparison with full depth times this many decode steps, this many ABBA rounds each. A round
# yields two pairs for the interval of the clock ratio.
TIMED_STEPS, ROUNDS = 16, 6
PART_STEPS = 24  # decode steps whose parts are timed
REPLY_ROUNDS = 2  # ABBA rounds of whole replies: plain ones and lossless replies


def nested_family(model: LoadedModel, schedule: Schedule) -> Schedule:
    """The schedule along whose order needed depths are searched.

    It is the run's own. For full depth, it is the one of an explicit alpha.

    Raises:
        UsageError: nothing can be dropped.
    """
    family = schedule
    if not schedule.units and model.gate.family.can_skip:
        family = model.schedule(0.5)
    if not family.units or not model.gate.family.can_skip:
        raise UsageError(
            "no layer of this model may be dropped, so no needed depth can be found",
            ("leave out ", Setting("needed"), ", or choose a smaller core"),
            field="needed",
        )
    return family


class Profiler:
    """Profiles prompts with one model, one after the other.

    Attributes:
        notes: sentences for the user about how the run went.
    """

    def __init__(self, model: LoadedModel, options: ProfileOptions) -> None:
        if options.layers and not model.gate.family.can_skip:
            raise UsageError(
                f"the layers of {model.name} cannot be timed by part: their parts are not known",
                ("leave out ", Setting("layers")),
                field="layers",
            )
        self.model, self.options = model, options
        self.notes: list[Words] = []
        self._engine = Engine(model)
        self._profiled: list[Profiled] = []
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._peak = 0

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Encodes all prompts, so that a bad one is found before the first one runs.

        Raises:
            PromptError, UsageError, ModelError: as for `Engine.stream`.
        """
        for prompt in prompts:
            self._start(Profiled(prompt, self.options.sampling), 0)

    def runs(self, prompt: Prompt) -> Iterator[Run]:
        """Yields the runs of one prompt. Iterate each to its end before asking for the next.

        Raises:
            PromptError, UsageError, ModelError: as for `Engine.stream`.
        """
        options = self.options
        profiled = Profiled(prompt, options.sampling.with_seed())
        self._profiled.append(profiled)
        for number in range(0 if options.repeats > 1 else 1, options.repeats + 1):
            run = self._start(profiled, number)
            if number:
                profiled.runs.append(run)
            else:
                profiled.warm_up = run
            yield run
            self._peak = max(self._peak, peak_memory(self.model.device))
            if options.drafting is not None:
                run.step_s = options.drafting.drafter.step_s
            self.notes += [note for note in run.reply.notes if note not in self.notes]
            if run.is_whole and profiled.runs and profiled.runs[0].is_whole:
                assert run.reply.schedule == profiled.runs[0].reply.schedule
            if number > 1 and run.token_ids != profiled.runs[0].token_ids:
                profiled.runs.pop()
                self.notes.append(f"repeat {number} generated different tokens, so it is left out")
        profiled.warm_up = None

    def _start(self, profiled: Profiled, number: int) -> Run:
        options = self.options
        self._engine.cache.crop(0)  # each run reads its whole prompt
        drafter = None if options.drafting is None else options.drafting.drafter
        return Run(self._stream(profiled, options.schedule, drafter, with_entropy=True), number)

    def _stream(
        self,
        profiled: Profiled,
        schedule: Schedule,
        drafter: Drafter | None,
        *,
        with_entropy: bool = False,
    ) -> Reply:
        options, prompt = self.options, profiled.prompt
        return self._engine.stream(
            prompt.text if options.raw else prompt.messages,
            schedule=schedule,
            sampling=profiled.sampling,
            max_tokens=options.max_tokens,
            stop=options.stop,
            chat_template=options.chat_template,
            think=options.think,
            raw=options.raw,
            with_entropy=with_entropy,
            drafter=drafter,
        )

    def examine(self) -> Iterator[tuple[str, float]]:
        """Measures everything that was asked for beyond the replies.

        Yields what is being measured, and the share of it that is done.

        Raises:
            GenerationError: the model's logits are not finite.
        """
        self._engine.clear()  # frees memory: what follows has its own
        found = [(one, one.document) for one in self._profiled]
        whole = [(one, document) for one, document in found if document is not None]
        options = self.options
        asked = options.compare or options.layers or options.needed_along is not None
        if asked and len(whole) < len(found):
            self.notes.append(
                f"{len(found) - len(whole)} of {len(found)} replies have no decode step, so only "
                "their tokens are recorded"
            )
        for number, (profiled, document) in enumerate(whole, start=1):
            name = f" of reply {number} of {len(whole)}" if len(whole) > 1 else ""
            for what, share in self._examine(profiled, document):
                yield f"{what}{name}", share

    def _examine(self, profiled: Profiled, document: Document) -> Iterator[tuple[str, float]]:
        options, model = self.options, self.model
        assert profiled.first is not None
        if options.drafting is not None:
            yield from self._examine_lossless(profiled, document)
            return
        schedule = profiled.first.reply.schedule  # in the order that ran
        if options.compare:
            yield "full depth's values", 0.0
            [[profiled.comparison]] = compare(model, [document], [schedule])
        if options.needed_along is not None:
            profiled.needed_order = order = self._order_of(document, options.needed_along)
            yield from self._find_needed(profiled, document, order)
        if not (options.compare or options.layers):
            return
        cache = fill_cache(model, document)
        if options.compare:
            times = StepTimes(model, cache, document, schedule, ROUNDS, TIMED_STEPS)
            for share in times:
                yield "full depth's time", share
            profiled.clock = clock_trace(times)
        if options.layers:
            # The comparison has cropped the cache.
            cache = fill_cache(model, document) if options.compare else cache
            yield from self._time_parts(profiled, document, cache)

    def _examine_lossless(
        self, profiled: Profiled, document: Document
    ) -> Iterator[tuple[str, float]]:
        assert profiled.first is not None and self.options.drafting is not None
        drafter, asked = self.options.drafting.drafter, self.options.schedule
        full = DepthSchedule.full(self.model.num_layers)

        def start(is_lossless: bool) -> Run:
            if is_lossless:
                return Run(self._stream(profiled, asked, drafter), 0)
            return Run(self._stream(profiled, full, None), 0)

        if self.options.compare:
            in_turn = InTurn(profiled.first, start, REPLY_ROUNDS)
            for share in in_turn:
                yield "plain decoding in turn", share
            profiled.clock = in_turn.clock()
            yield "the tokens", 1.0
            profiled.equality = in_turn.equality()
            self._engine.clear()
        if self.options.layers:
            yield from self._time_parts(profiled, document, fill_cache(self.model, document))

    def _time_parts(
        self, profiled: Profiled, document: Document, cache: KVCache
    ) -> Iterator[tuple[str, float]]:
        parts = PartTimes(self.model, cache, document, PART_STEPS)
        for share in parts:
            yield "time by layer", share
        profiled.layers = layers_trace(parts)

    def _order_of(self, document: Document, along: Schedule) -> tuple[str, ...]:
        """The order for a reply's needed depths; that of the model if its prompt is too short."""
        if not isinstance(along, PromptSchedule):
            return along.skip_order
        ordered = MeasuredPrompt(self.model, document.prompt_ids).ordered(along)
        return ordered.skip_order or along.units[: along.max_dropped]

    def _find_needed(
        self, profiled: Profiled, document: Document, order: Sequence[str]
    ) -> Iterator[tuple[str, float]]:
        choices: list[Tensor] = []
        scorer = Scorer(self.model, [document])
        for choice in constant_depth_choices(self.model, scorer, order):
            choices.append(choice)
            yield "needed depth", len(choices) / (len(order) + 1)
        settled: list[int] = []
        for count, settled in saturation_layers(self.model, document):  # noqa: B007 - the last
            yield "logit lens", count / self.model.num_layers
        profiled.needed = needed_depths(self.model, order, choices)
        profiled.saturation = settled

    @property
    def has_tokens(self) -> bool:
        """Whether any reply has a token."""
        return any(one.first is not None and one.first.reply.tokens for one in self._profiled)

    def trace(self, *, interrupted: bool = False) -> Trace:
        """The record of everything measured so far."""
        for profiled in self._profiled:
            run = profiled.first
            if run is not None and not run.is_whole:
                run.reply.release()
        return record_trace(
            self.model,
            self.options,
            self._profiled,
            created=self._created,
            peak_memory_bytes=self._peak or peak_memory(self.model.device),
            interrupted=interrupted,
        )
