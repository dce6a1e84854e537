"""``d3 profile``: where the layers go, token by token, and what it costs."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d3cli.base.errors import D3Error, UsageError
from d3cli.cli import options, signals
from d3cli.cli.completion import complete_model
from d3cli.cli.output import ClosedPipe, Output, WriteError, json_line
from d3cli.cli.profile.destination import SUFFIXES, Destination, Format
from d3cli.cli.prompts import PromptRow, read_arguments, read_prompts
from d3cli.cli.request import Ready, Request

if TYPE_CHECKING:
    from d3cli.profile.profiler import Profiler
    from d3cli.profile.run import Prompt
    from d3cli.profile.trace import Trace

MEASURE, RECORDED = "Measure", "Recorded runs"
PIPE_WIDTH = 160  # of tables that no terminal shows
WITH_FROM = {"from_", "against", "form", "as_json", "output_file", "debug"}


def profile(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_model,
            help=options.MODEL_HELP + ". A lone argument that names no model is the prompt.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin."),
    ] = None,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            rich_help_panel=options.INPUT,
            help='Several prompts: a .jsonl file whose rows have "prompt" or "messages".',
        ),
    ] = None,
    system: options.System = None,
    chat_template: options.ChatTemplate = None,
    raw: options.Raw = False,
    think: options.ThinkSwitch = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            rich_help_panel=MEASURE,
            help="What full depth would have said at each token, and how long it takes, timed in "
            "turn with the reply's own depth.",
        ),
    ] = False,
    needed: Annotated[
        bool,
        typer.Option(
            "--needed",
            rich_help_panel=MEASURE,
            help="How deep each token had to go to be chosen as full depth chooses: one pass a "
            "layer.",
        ),
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            rich_help_panel=MEASURE,
            help="Time and bytes by layer and part, at full depth.",
        ),
    ] = False,
    repeat: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            rich_help_panel=MEASURE,
            help="Time each reply so often, after a run that warms up; mean ± sd.",
        ),
    ] = 1,
    alpha: options.Alpha = "auto",
    start: options.Start = None,
    core_first: options.CoreFirst = None,
    core_last: options.CoreLast = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    dtype: options.Dtype = options.DtypeName.auto,
    quantization: options.QuantizationOption = None,
    quantize_head: options.QuantizeHead = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    force: options.Force = False,
    verify: options.Verify = False,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="TRACE",
            rich_help_panel=RECORDED,
            help="Draw a run that was recorded with -o json; no model is loaded.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACE",
            rich_help_panel=RECORDED,
            help="Line the run of --from up with this one.",
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "-o",
            "--output",
            rich_help_panel=options.OUTPUT,
            help="The result's form. Default: what --output-file's name ends with, else table.",
        ),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="Write the result there; a terminal shows the table as well.",
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001 - its callback does the work
) -> int:
    """Watch how many layers each token of a reply uses, and what that costs and saves.

    On a terminal a live table; then the result, as a table, JSON, CSV or an HTML report.

    Examples:
    - `d3 profile "Tell me a story about a fox." --compare`

    - `d3 profile llama-3-8b --prompt-file p.txt --needed --output-file report.html`

    - `d3 profile --from trace.json --against other.json`
    """
    output = Output()
    output_file = None if output_file == Path("-") else output_file
    destination = _destination(output, form, as_json, output_file)
    if from_ is not None:
        _check_recorded(ctx)
        _show_recorded(output, destination, from_, against)
        return 0
    if against is not None:
        raise UsageError("--against lines up two recorded runs", "give the other one with --from")
    if raw and not options.was_typed(ctx, "system"):
        system = None  # config.toml's is for chat templates
    model_name, rows = _read_prompts(model, text, prompt, prompt_file, prompts)
    if raw and any(len(row.messages) > 1 for row in rows):
        raise UsageError("--raw takes one text a prompt, not messages", "leave out --raw")
    rows = [row.with_system(system) if system else row for row in rows]
    destination.check(output, (prompt_file, prompts, chat_template))
    request = Request(
        raw=raw,
        system=system,
        chat_template=chat_template,
        think=think,
        alpha=alpha,
        start=start,
        core=(core_first, core_last),
        sampling={
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
        },
        max_tokens=max_tokens,
        stop=stop,
        dtype=dtype,
        quantization=quantization,
        quantize_head=quantize_head,
        device=device,
        threads=threads,
        offline=offline,
        force=force,
        verify=verify,
    )
    longest = max((row.whole_text for row in rows), key=len)
    ready = request.prepare(output, model_name, longest)

    from d3cli.profile.profiler import Profiler, nested_family
    from d3cli.profile.run import ProfileOptions, Prompt

    order = nested_family(ready.model, ready.schedule, ready.source) if needed else None
    profiler = Profiler(
        ready.model,
        ProfileOptions(
            schedule=ready.schedule,
            source=ready.source,
            sampling=ready.sampling,
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
            chat_template=ready.chat_template,
            think=ready.think,
            raw=raw,
            repeats=repeat,
            compare=compare,
            needed_order=order,
            layers=layers,
        ),
    )
    _profile(output, profiler, [Prompt(row.text, row.messages) for row in rows], ready, destination)
    return 0


def _profile(
    output: Output,
    profiler: "Profiler",
    prompts: Sequence["Prompt"],
    ready: Ready,
    destination: Destination,
) -> None:
    """Runs everything, and writes what there is, also where it ends early."""
    try:
        signals.stop_in_order()
        signals.stop_once()  # no second signal cuts in two what the first one leaves
        _run(output, profiler, prompts, ready)
        output.follow(_checked(profiler.examine()))
    except ClosedPipe:
        raise
    except BaseException:
        if profiler.has_tokens:  # else nothing is worth replacing a file for
            _write_what_there_is(output, profiler, destination)
        signals.check()  # a terminal that has gone fails us, too, but its signal came first
        raise
    else:
        with signals.deferred():
            _write(output, profiler.trace(), destination)
        signals.check()
    finally:
        for note in profiler.notes:
            output.note(note)
        signals.exit_at_once()


def _write_what_there_is(output: Output, profiler: "Profiler", destination: Destination) -> None:
    """After a failure or a signal: that is what is told, so a second one does not hide it."""
    try:
        _write(output, profiler.trace(interrupted=True), destination)
    except ClosedPipe:
        return
    except D3Error as error:
        output.failure(error)


def _run(output: Output, profiler: "Profiler", prompts: Sequence["Prompt"], ready: Ready) -> None:
    """The replies, on a live screen where there is one."""
    from d3cli.cli.profile.live import ProfileView

    asked = profiler.options
    profiler.check(prompts)
    with output.live() as (live, stops):
        view = ProfileView(
            live,
            ready.model,
            ready.schedule,
            asked.max_tokens,
            len(prompts),
            asked.repeats,
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


def _read_prompts(
    model: str | None,
    text: str | None,
    prompt: str | None,
    prompt_file: Path | None,
    prompts: Path | None,
) -> tuple[str, list[PromptRow]]:
    """The model's name, and the prompts."""
    if prompts is not None:
        return read_prompts(model, text, prompt, prompt_file, prompts)
    name, whole = read_arguments(model, text, prompt, prompt_file)
    return name, [PromptRow(whole, ({"role": "user", "content": whole},))]


def _destination(
    output: Output, form: Format | None, as_json: bool, path: Path | None
) -> Destination:
    if as_json and form not in (None, Format.json):
        raise UsageError(f"--json and -o {form} exclude each other", "give one of them")
    if as_json:
        form = Format.json
    if form is None:
        form = Format.table if path is None else SUFFIXES.get(path.suffix.lower(), Format.table)
    if form is Format.html and path is None and output.stdout_width:
        raise UsageError("a terminal cannot show HTML", "give --output-file report.html")
    return Destination(form, path)


def _write(output: Output, trace: "Trace", destination: Destination) -> None:
    width = output.stdout_width or PIPE_WIDTH
    _deliver(output, destination, lambda form: _render(trace, form, width))


def _deliver(output: Output, destination: Destination, render: Callable[[Format], str]) -> None:
    """The result, to where it was asked for; a terminal sees a table beside any file."""
    text = render(destination.form)
    if destination.path is not None:
        try:
            destination.write(output, text)
        except WriteError:  # what was measured is not lost
            if destination.form is Format.html and output.stdout_width:
                text = render(Format.table)
            _show(output, destination.form, text)
            raise
        if output.stdout_width:
            output.write(render(Format.table))
        return
    _show(output, destination.form, text)


def _show(output: Output, form: Format, text: str) -> None:
    if form is Format.html and not output.stdout_width:
        output.document(text)
    else:
        output.write(text)


def _render(trace: "Trace", form: Format, width: int) -> str:
    if form is Format.json:
        from d3cli.profile.summary import with_figures

        return json_line(with_figures(trace))
    if form is Format.html:
        from d3cli.profile.html.page import html_report

        return html_report(trace)
    from d3cli.cli.profile.tables import csv_text, report

    return csv_text(trace) if form is Format.csv else report(trace, width)


def _check_recorded(ctx: typer.Context) -> None:
    """Raises UsageError where something is asked for that a recorded run no longer has."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in WITH_FROM:
            raise UsageError(
                f"--from draws a run as it was recorded, so it takes no {parameter.opts[0]}",
                "leave that out, or leave out --from",
            )


def _show_recorded(
    output: Output, destination: Destination, path: Path, against: Path | None
) -> None:
    from d3cli.profile.trace import read_trace

    trace = read_trace(path)
    destination.check(output, (path, against))
    if against is None:
        _write(output, trace, destination)
        return
    if destination.form not in (Format.table, Format.json):
        raise UsageError(
            f"two runs side by side have no {destination.form}", "use -o table or -o json"
        )
    from d3cli.cli.profile.against import against_json, against_report

    other, names = read_trace(against), (str(path), str(against))
    width = output.stdout_width or PIPE_WIDTH

    def render(form: Format) -> str:
        if form is Format.json:
            return json_line(against_json(trace, other))
        return against_report(trace, other, names, width)

    _deliver(output, destination, render)
