"""``d3 profile``: where the layers go, token by token, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from d3cli.base.errors import UsageError
from d3cli.cli import options
from d3cli.cli.completion import complete_model
from d3cli.cli.output import Output
from d3cli.cli.profile.destination import Format
from d3cli.cli.profile.recorded import check_options, show_recorded
from d3cli.cli.profile.result import choose_destination
from d3cli.cli.profile.running import run_profile
from d3cli.cli.prompts import PromptRow, read_arguments, read_prompts
from d3cli.cli.request import Request

MEASURE, RECORDED = "Measure", "Recorded runs"


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
    destination = choose_destination(output, form, as_json, output_file)
    if from_ is not None:
        check_options(ctx)
        show_recorded(output, destination, from_, against)
        return 0
    if against is not None:
        raise UsageError("--against lines up two recorded runs", "give the other one with --from")
    if raw and not options.was_typed(ctx, "system"):
        system = None  # config.toml's is for chat templates
    model_name, rows = _read_rows(model, text, prompt, prompt_file, prompts)
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
    run_profile(output, profiler, [Prompt(row.text, row.messages) for row in rows], destination)
    return 0


def _read_rows(
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
