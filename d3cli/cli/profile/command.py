"""``d3 profile``: depth and time of each token of a reply."""

from pathlib import Path
from typing import TYPE_CHECKING

from d3cli.base.errors import UsageError
from d3cli.cli.command_line import command
from d3cli.cli.output import Output
from d3cli.cli.profile.options import ProfileSettings
from d3cli.cli.profile.policy import check_policy, with_policy
from d3cli.cli.profile.recorded import check_options, show_recorded
from d3cli.cli.profile.result import choose_destination
from d3cli.cli.profile.running import run_profile
from d3cli.cli.prompt_options import Think
from d3cli.cli.prompts import PromptRow, read_prompt, read_prompts
from d3cli.cli.request import Ready, prepare, system_prompt

if TYPE_CHECKING:
    from d3cli.profile.profiler import Profiler


@command(ProfileSettings)
def profile(settings: ProfileSettings) -> int:
    """Watch how many layers each token of a reply uses, and what that costs and saves.

    A terminal shows a live table. The result is a table, JSON, CSV or an HTML report.

    Examples:
    - `d3 profile "Tell me a story about a fox." --compare`

    - `d3 profile llama-3-8b --prompt-file p.txt --needed --output-file report.html`

    - `d3 profile --from trace.json --against other.json`
    """
    output = Output()
    file = None if settings.output_file == Path("-") else settings.output_file
    destination = choose_destination(output, settings.form, settings.as_json, file)
    recorded, prompts = settings.recorded, settings.prompts
    if recorded.from_ is not None:
        check_options(settings.typed)
        show_recorded(output, destination, recorded.from_, recorded.against)
        return 0
    if recorded.against is not None:
        raise UsageError("--against compares two recorded runs", "name the other one with --from")
    if settings.reply.template.think is Think.hide:
        raise UsageError("d3 profile shows all tokens, also of reasoning", "use --think on")
    check_policy(settings.policy, settings.reply)
    name, rows = _read_rows(output, settings)
    if prompts.raw and any(len(row.messages) > 1 for row in rows):
        raise UsageError("--raw takes one text per prompt, not messages", "leave out --raw")
    if system := system_prompt(settings):
        rows = [row.with_system(system) for row in rows]
    template = settings.reply.template.chat_template
    destination.check(output, (prompts.prompt_file, settings.input_file, template))
    longest = max((row.whole_text for row in rows), key=len)
    ready = with_policy(output, prepare(output, settings, name, longest), settings.policy)

    from d3cli.profile.run import Prompt

    texts = [Prompt(row.text, row.messages) for row in rows]
    run_profile(output, _profiler(output, ready, settings), texts, destination)
    return 0


def _profiler(output: Output, ready: Ready, settings: ProfileSettings) -> "Profiler":
    from d3cli.profile.profiler import Profiler, nested_family
    from d3cli.profile.run import Drafting, ProfileOptions

    measure, drafter, asked = settings.measure, ready.new_drafter(), ready.request.drafting
    drafting = None
    if drafter is not None and asked is not None:
        drafting = Drafting(drafter, asked.source, asked.model)
    needed = measure.needed
    if needed and drafting is not None:
        output.note(
            "--needed is left out: a lossless reply runs at full depth, whatever its tokens need"
        )
        needed = False
    along = nested_family(ready.model, ready.schedule) if needed else None
    return Profiler(
        ready.model,
        ProfileOptions(
            schedule=ready.schedule,
            source=ready.source,
            sampling=ready.sampling,
            max_tokens=ready.request.max_tokens,
            stop=ready.request.stop,
            chat_template=ready.request.chat_template,
            think=ready.think,
            raw=settings.prompts.raw,
            repeats=measure.repeat,
            compare=measure.compare,
            needed_along=along,
            layers=measure.layers,
            drafting=drafting,
            policy=settings.policy,
        ),
    )


def _read_rows(output: Output, settings: ProfileSettings) -> tuple[str, list[PromptRow]]:
    """The model's name, and the prompts."""
    if settings.input_file is not None:
        return read_prompts(output, settings.prompts, settings.input_file, settings.typed)
    name, whole = read_prompt(output, settings.prompts, settings.typed)
    return name, [PromptRow(whole, ({"role": "user", "content": whole},))]
