"""``d3 generate``: one reply, for people and for pipes."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from d3cli.base.amounts import readable_size
from d3cli.cli import options, signals
from d3cli.cli.command_line import CommandSettings, command
from d3cli.cli.format import speed
from d3cli.cli.output import ClosedPipe, Output, WriteError
from d3cli.cli.progress import PROGRESS_FROM
from d3cli.cli.prompts import read_prompt
from d3cli.cli.request import prepare, system_prompt
from d3cli.depth.choice import Source

if TYPE_CHECKING:
    from d3cli.decode.reply import Reply

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings(CommandSettings):
    """The command line of ``d3 generate``."""

    prompts: options.PromptOptions
    reply: options.GenerationOptions
    as_json: options.Json = False
    debug: options.Debug = False


@command(GenerateSettings)
def generate(settings: GenerateSettings) -> int:
    """Write one reply.

    The reply goes to stdout, everything else to stderr. Piped text is put before the prompt, and
    a note says how many bytes that are. In a loop that reads a file, --no-stdin leaves it the rest.

    Examples:
    - `d3 generate "Tell me a story about a fox."`

    - `d3 generate qwen-3-0.6b "Why is the sky blue?" --alpha 0.995`

    - `cat notes.txt | d3 generate qwen-3-4b "Summarise this." > summary.txt`

    - `while read -r q; do d3 generate --no-stdin "$q"; done < questions.txt`
    """
    output = Output()
    raw = settings.prompts.raw
    name, prompt = read_prompt(output, settings.prompts, settings.typed)
    ready = prepare(output, settings, name, prompt)
    messages = [{"role": "user", "content": prompt}]
    if system := system_prompt(settings):
        messages.insert(0, {"role": "system", "content": system})

    from d3cli.decode.session import Engine

    reply = Engine(ready.model).stream(
        prompt if raw else messages,
        schedule=ready.schedule,
        sampling=ready.sampling,
        max_tokens=ready.request.max_tokens,
        stop=ready.request.stop,
        chat_template=ready.request.chat_template,
        think=ready.request.think,
        raw=raw,
    )
    _stream(output, reply, ready.source, settings.as_json)
    return 0


def _stream(output: Output, reply: "Reply", source: Source, as_json: bool) -> None:
    try:
        signals.stop_in_order()
        if len(reply.prompt_ids) >= PROGRESS_FROM:
            output.progress.track(reply.prefill(), len(reply.prompt_ids), "reading the prompt")
        for chunk in reply:
            if not as_json:
                output.write(chunk.text)
            signals.check()
    except (ClosedPipe, WriteError):
        raise
    except BaseException:  # interrupted or failed: keep what was generated so far
        with suppress(ClosedPipe, WriteError):  # the reader of stdout may be gone as well
            held = reply.release()
            if not as_json:
                output.write(held)
            _close(output, reply, source, as_json)
        raise
    else:
        _close(output, reply, source, as_json)
    finally:
        signals.exit_at_once()  # no text is left to keep


def _close(output: Output, reply: "Reply", source: Source, as_json: bool) -> None:
    stats = reply.stats
    if as_json:
        output.json(_as_json(reply, source))
        return
    output.end_line()
    if not stats.completion_tokens:
        return
    parts = speed(reply)
    if stats.mean_depth is not None:
        parts.append(f"layer ratio {stats.layer_ratio:.2f}×, byte ratio {stats.byte_ratio:.2f}×")
    parts.append(f"peak {readable_size(stats.peak_memory_bytes)}")
    parts.append(f"stopped: {reply.finish_reason}")
    output.note(" · ".join(parts))


def _as_json(reply: "Reply", source: Source) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "schedule": reply.schedule.to_json() | {"source": source},
        "stats": asdict(reply.stats),
        "tokens": [
            {
                "step": token.step,
                "token_id": token.token_id,
                "text": piece,
                "depth": token.depth,
                "logprob": token.logprob,
            }
            for token, piece in zip(reply.tokens, reply.pieces, strict=False)
        ],
    }
