"""``d3 generate``: one reply, for people and for pipes."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d3cli.base.amounts import readable_size
from d3cli.base.errors import UsageError
from d3cli.cli import options, signals
from d3cli.cli.batch.options import BatchCommandOptions
from d3cli.cli.command_line import CommandSettings, command
from d3cli.cli.format import draft_figures, speed
from d3cli.cli.output import ClosedPipe, Output, WriteError
from d3cli.cli.progress import PROGRESS_FROM
from d3cli.cli.prompt_options import PromptOptions, Think
from d3cli.cli.prompts import read_input, read_prompt
from d3cli.cli.reply_json import reply_as_json
from d3cli.cli.request import Ready, prepare, system_prompt
from d3cli.text.reasoning import AnswerStream, split_reasoning

if TYPE_CHECKING:
    from d3cli.decode.reply import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings(CommandSettings):
    """The command line of ``d3 generate``."""

    prompts: PromptOptions
    batch: BatchCommandOptions
    reply: options.GenerationOptions
    as_json: options.Json = False
    debug: options.Debug = False


@command(GenerateSettings)
def generate(settings: GenerateSettings) -> int:
    """Write one reply.

    The reply goes to stdout, everything else to stderr. Piped text is put before the prompt, and
    a note says how many bytes that are. In a loop that reads a file, --no-stdin leaves it the rest.

    In JSON, text is the whole reply. Of a model that thinks first, reasoning is its thinking, else
    null, and answer is what follows. model, dtype and quantization say what wrote it; quantization
    is null if the weights are as stored. The object "lossless" says what was drafted; it is null
    without --lossless.

    Examples:
    - `d3 generate "Tell me a story about a fox."`

    - `d3 generate qwen-3-0.6b "Why is the sky blue?" --alpha 0.995`

    - `cat notes.txt | d3 generate qwen-3-4b "Summarise this." > summary.txt`

    - `while read -r q; do d3 generate --no-stdin "$q"; done < questions.txt`

    - `d3 generate qwen-3-4b --input prompts.jsonl --output-file replies.jsonl`
    """
    output = Output()
    if settings.batch.check(settings.typed):
        return _generate_batch(output, settings)
    raw = settings.prompts.raw
    name, prompt = read_prompt(output, settings.prompts, settings.typed)
    ready = prepare(output, settings, name, prompt)
    messages = [{"role": "user", "content": prompt}]
    if system := system_prompt(settings):
        messages.insert(0, {"role": "system", "content": system})

    from d3cli.decode.conversation import inside
    from d3cli.decode.session import Engine

    reply = Engine(ready.model).stream(
        prompt if raw else messages,
        schedule=ready.schedule,
        sampling=ready.sampling,
        max_tokens=ready.request.max_tokens,
        stop=ready.request.stop,
        chat_template=ready.request.chat_template,
        think=ready.think,
        raw=raw,
        drafter=ready.new_drafter(),
    )
    opening = inside(reply)
    if settings.as_json:
        _stream(output, reply, _Json(output, opening, ready))
    else:
        hide = ready.request.think is Think.hide
        _stream(output, reply, _Text(output, opening, hide=hide))
    return 0


def _generate_batch(output: Output, settings: GenerateSettings) -> int:
    """Writes a reply to each row of a file."""
    from d3cli.cli.batch.results import choose_target
    from d3cli.cli.batch.rows import longest, most_tokens, parse_input
    from d3cli.cli.batch.run import BatchOptions, run_batch

    batch, prompts, reply = settings.batch, settings.prompts, settings.reply
    assert batch.input_file is not None
    if batch.size is not None and batch.size > 1 and reply.drafts.read() is not None:
        raise UsageError(
            "lossless replies are written one after the other, not in batches",
            "leave out --batch-size or --lossless",
        )
    name, text = read_input(output, prompts, batch.input_file, settings.typed)
    rows = parse_input(text, batch.input_file, raw=prompts.raw)
    system = system_prompt(settings)
    inputs = (batch.input_file, reply.template.chat_template)
    target = choose_target(batch.output_file, inputs, [row.digest for row in rows])
    if target is None:
        output.check_stdout()
    tokens = most_tokens(rows, reply.sampling.max_tokens)
    ready = prepare(output, settings, name, longest(rows, system), tokens)
    asked = BatchOptions(
        model=name,
        revision=reply.loading.revision,
        system=system,
        raw=prompts.raw,
        target=target,
        size=batch.size,
        force=reply.loading.force,
    )
    run_batch(output, ready, rows, asked)
    return 0


class _Json:
    """Writes a reply to stdout as one JSON object.

    Args:
        inside: the opening tag at the end of the prompt, if the reply begins within reasoning.
    """

    def __init__(self, output: Output, inside: str, ready: Ready) -> None:
        self._output, self._inside, self._ready = output, inside, ready

    def begin(self) -> None:
        """Does nothing."""

    def write(self, text: str) -> None:
        """Does nothing: the object is written when the reply has ended."""

    def finish(self, reply: "Reply") -> None:
        """Writes the object."""
        self._output.json(reply_as_json(reply, self._inside, self._ready))


class _Text:
    """Writes a reply to stdout as text, while it arrives.

    Args:
        inside: the opening tag at the end of the prompt, if the reply begins within reasoning.
        hide: leave out the reasoning.
    """

    def __init__(self, output: Output, inside: str, *, hide: bool) -> None:
        self._output, self._inside = output, inside
        self._answer = AnswerStream(inside) if hide else None
        self._spinner = ExitStack()  # while nothing is shown

    def begin(self) -> None:
        """Shows on a terminal's stderr that the model is thinking."""
        if self._answer is not None:
            self._spinner.enter_context(self._output.progress.waiting("thinking"))

    def write(self, text: str) -> None:
        """Writes more of the reply."""
        if self._answer is not None:
            text = self._answer.push(text)
        if text:
            self._spinner.close()
        self._output.write(text)

    def finish(self, reply: "Reply") -> None:
        """Writes the rest of the text, and figures to stderr."""
        self._spinner.close()
        if self._answer is not None:
            self._output.write(self._answer.flush())
        self._output.end_line()
        if self._answer is not None:
            self._report_no_answer(reply)
        if reply.tokens:
            self._output.note(_figures(reply))

    def _report_no_answer(self, reply: "Reply") -> None:
        """Says why nothing is shown if the reply is all reasoning."""
        reasoning, answer = split_reasoning(self._inside + reply.text)
        if reasoning and not answer.strip():
            hint = "without --think hide, its reasoning is shown"
            if reply.finish_reason == "length":
                hint = "raise --max-tokens"
            self._output.note(f"no answer: the reply ended while the model was thinking; {hint}")


def _stream(output: Output, reply: "Reply", shown: _Json | _Text) -> None:
    try:
        signals.stop_in_order()
        if len(reply.prompt_ids) >= PROGRESS_FROM:
            output.progress.track(reply.prefill(), len(reply.prompt_ids), "reading the prompt")
        else:
            for _ in reply.prefill():
                signals.check()
        for note in reply.notes:
            output.note(note)
        shown.begin()
        for chunk in reply:
            shown.write(chunk.text)
            signals.check()
    except (ClosedPipe, WriteError):
        raise
    except BaseException:  # interrupted or failed: keep what was generated so far
        with suppress(ClosedPipe, WriteError):  # the reader of stdout may be gone as well
            shown.write(reply.release())
            shown.finish(reply)
        raise
    else:
        shown.finish(reply)
    finally:
        signals.exit_at_once()  # no text is left to keep


def _figures(reply: "Reply") -> str:
    stats, parts = reply.stats, speed(reply)
    if stats.lossless is not None:
        parts += [draft_figures(stats.lossless)] if stats.lossless.passes else []
    elif stats.mean_depth is not None:
        parts.append(f"layer ratio {stats.layer_ratio:.2f}×, byte ratio {stats.byte_ratio:.2f}×")
    parts.append(f"peak {readable_size(stats.peak_memory_bytes)}")
    parts.append(f"stopped: {reply.finish_reason}")
    return " · ".join(parts)
