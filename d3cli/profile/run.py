"""Replies while they are profiled: their options, their timed runs and what was measured."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean

from d3cli.decode.chunk import GenerationChunk
from d3cli.decode.draft.drafter import Drafter, SourceChoice
from d3cli.decode.reply import Reply
from d3cli.decode.sampling import SamplingParams
from d3cli.depth.policies import Policy
from d3cli.depth.prompt_order import Schedule
from d3cli.profile.trace_lossless import EqualityTrace
from d3cli.profile.trace_times import ClockTrace, LayersTrace, RepeatTrace
from d3cli.scoring.compare import Comparison
from d3cli.scoring.documents import Document
from d3cli.text.chat_template import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: the conversation, and the user's last message."""

    text: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Drafting:
    """How lossless replies are drafted.

    Attributes:
        drafter: serves all replies, and learns from them.
        source: what it may draft with.
        draft_model: the name of its model; None without one.
    """

    drafter: Drafter
    source: SourceChoice
    draft_model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """How replies are made, and what is measured.

    Attributes:
        schedule: if each prompt decides its order, so does each reply's.
        source: where the schedule comes from, in one word.
        policy: what the schedule is one of.
        repeats: timed runs of each prompt. Two or more come after one warm-up run.
        compare: compare each reply with full depth, by value and by the clock.
        needed_along: the schedule along whose order each token's needed depth is searched; None
            skips the search. Lossless replies have no needed depth.
        layers: time each part of a decode step.
        drafting: how replies are drafted; None unless they are lossless. `schedule` is then for
            their drafts.
    """

    schedule: Schedule
    source: str
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    chat_template: str | None = None
    think: bool | None = None
    raw: bool = False
    repeats: int = 1
    compare: bool = False
    needed_along: Schedule | None = None
    layers: bool = False
    drafting: Drafting | None = None
    policy: Policy = Policy.D3


class Run:
    """One timed reply. Iterate it for its chunks.

    Attributes:
        reply: the reply so far.
        number: 0 for the warm-up run, else the number of the repeat.
        ms: milliseconds of each decode step so far, without the caller's work between the steps.
        step_s: seconds that a plain step took lately, set after a lossless reply; None if unknown.
    """

    def __init__(self, reply: Reply, number: int) -> None:
        self.reply, self.number = reply, number
        self.ms: list[float] = []
        self.step_s: float | None = None
        self._cpu_s = 0.0

    def __iter__(self) -> Iterator[GenerationChunk]:
        chunks = iter(self.reply)
        while True:
            cpu, began = time.process_time(), time.perf_counter()
            chunk = next(chunks, None)
            ended = time.perf_counter()
            if chunk is None:
                return
            if chunk.token.step:  # token 0 comes from the prefill
                self.ms.append(1000 * (ended - began))
                self._cpu_s += time.process_time() - cpu
            yield chunk

    def leave_out(self, seconds: float) -> None:
        """Subtracts seconds from the last step, during which the process was suspended."""
        if self.ms and self.ms[-1] > 1000 * seconds:  # else it was suspended between two steps
            self.ms[-1] -= 1000 * seconds

    @property
    def token_ms(self) -> list[float]:
        """Milliseconds of each decode step; tokens of one pass share its time equally."""
        shared = list(self.ms)
        for done in self.reply.verifications:
            times = self.ms[done.step - 1 : done.step - 1 + done.tokens]
            shared[done.step - 1 : done.step - 1 + len(times)] = [fmean(times or [0.0])] * len(
                times
            )
        return shared

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.reply.tokens]

    @property
    def is_whole(self) -> bool:
        """Whether the reply reached its end."""
        return self.reply.finish_reason != "interrupted"

    @property
    def decode_s(self) -> float:
        return math.fsum(self.ms) / 1000

    def record(self) -> RepeatTrace:
        """Its times. It must have a token."""
        seconds = self.decode_s
        return RepeatTrace(
            ttft_s=self.reply.stats.ttft_s or 0.0,
            decode_s=seconds,
            cpu_percent=100 * self._cpu_s / seconds if seconds else None,
        )


@dataclass(slots=True)
class Profiled:
    """One prompt, and everything measured of its reply so far."""

    prompt: Prompt
    sampling: SamplingParams
    warm_up: Run | None = None
    runs: list[Run] = field(default_factory=list)
    comparison: Comparison | None = None
    needed: list[float] | None = None
    needed_order: tuple[str, ...] | None = None
    saturation: list[int] | None = None
    clock: ClockTrace | None = None
    layers: LayersTrace | None = None
    equality: EqualityTrace | None = None

    @property
    def first(self) -> Run | None:
        """The run whose tokens are recorded; the warm-up run if there is no other."""
        begun = [run for run in (*self.runs, self.warm_up) if run is not None]
        return next((run for run in begun if run.reply.tokens), begun[0] if begun else None)

    @property
    def document(self) -> Document | None:
        """Its reply as a document; None if it has no decode step or was interrupted."""
        run = self.first
        if run is None or not run.is_whole or len(run.reply.tokens) < 2:
            return None
        return Document(run.reply.prompt_ids, [token.token_id for token in run.reply.tokens])
