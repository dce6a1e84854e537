"""A profiled run from a terminal: the live screen, progress, signals, and the result.

Whatever was measured before a failure or a signal is still written.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from d3cli.base.errors import D3Error
from d3cli.cli import signals
from d3cli.cli.output import ClosedPipe, Output
from d3cli.cli.profile.destination import Destination
from d3cli.cli.profile.result import write_trace

if TYPE_CHECKING:
    from d3cli.profile.profiler import Profiler
    from d3cli.profile.run import Prompt


def run_profile(
    output: Output,
    profiler: "Profiler",
    prompts: Sequence["Prompt"],
    destination: Destination,
) -> None:
    """Profiles the prompts and writes the result, also where the run ends early.

    Raises:
        Stopped: a signal arrived.
        D3Error: the run or the writing failed.
    """
    try:
        signals.stop_in_order()
        signals.stop_once()  # a second signal must not interrupt what the first one left to do
        _run(output, profiler, prompts)
        output.progress.follow(_checked(profiler.examine()))
    except ClosedPipe:
        raise
    except BaseException:
        if profiler.has_tokens:  # without a token there is nothing to replace a file with
            _write_partial(output, profiler, destination)
        signals.check()  # a closed terminal raises errors too, but its signal came first
        raise
    else:
        with signals.deferred():
            write_trace(output, profiler.trace(), destination)
        signals.check()
    finally:
        for note in profiler.notes:
            output.note(note)
        signals.exit_at_once()


def _write_partial(output: Output, profiler: "Profiler", destination: Destination) -> None:
    """Writes what was measured so far; an error here must not hide the first one."""
    try:
        write_trace(output, profiler.trace(interrupted=True), destination)
    except ClosedPipe:
        return
    except D3Error as error:
        output.failure(error)


def _run(output: Output, profiler: "Profiler", prompts: Sequence["Prompt"]) -> None:
    """Generates the replies, on a live screen where stderr is a terminal."""
    from d3cli.cli.profile.live import ProfileView

    asked = profiler.options
    profiler.check(prompts)
    with output.progress.live() as (live, stops):
        view = ProfileView(
            live, profiler.model, asked.schedule, asked.max_tokens, len(prompts), asked.repeats
        )
        for number, prompt in enumerate(prompts, start=1):
            for run in profiler.runs(prompt):
                view.begin(run, number)
                for done in run.reply.prefill():
                    view.read(done)
                    signals.check()
                for _ in run:
                    while stops:
                        run.leave_out(stops.pop())
                    view.add(run)
                    signals.check()


def _checked(steps: Iterator[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    for step in steps:
        signals.check()
        yield step
