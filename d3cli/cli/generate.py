"""``d3 generate``: one reply, for people and for pipes."""

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d3cli.cli import options, signals
from d3cli.cli.depth import choose_schedule, parse_alpha, parse_start
from d3cli.cli.figures import speed
from d3cli.cli.loading import load
from d3cli.cli.output import ClosedPipe, Output, WriteError
from d3cli.cli.prompt import check_utf8, estimate_tokens, read_arguments, read_text
from d3cli.errors import UsageError
from d3cli.sampling import SamplingParams
from d3cli.store import calibrate_command

if TYPE_CHECKING:
    from d3cli.engine import Reply

SCHEMA = 1
# Below this many prompt tokens a progress bar would only flicker.
PROGRESS_FROM = 1024


def generate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="An alias, a hub id or a directory. Default: the configured model, else the "
            "built-in one. A lone argument that names no model is the prompt.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin."),
    ] = None,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    system: options.System = None,
    chat_template: options.ChatTemplate = None,
    raw: options.Raw = False,
    think: options.ThinkSwitch = None,
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
    device: options.Device = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    force: options.Force = False,
    as_json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001 - its callback does the work
) -> int:
    """Write one reply.

    The reply goes to stdout, everything else to stderr. Text piped in stands before the prompt.

    Examples:
    - `d3 generate "Tell me a story about a fox."`

    - `d3 generate qwen-3-0.6b "Why is the sky blue?" --alpha 0.995`

    - `cat notes.txt | d3 generate qwen-3-4b "Summarise this." > summary.txt`
    """
    output = Output()
    model_name, prompt_text = read_arguments(model, text, prompt, prompt_file)
    if raw and (system or chat_template or think):
        raise UsageError(
            "--raw uses no chat template, so no --system, --chat-template or --think",
            "leave those out, or leave out --raw",
        )
    # Checked before the slow part: a wrong number should not cost a model's loading.
    decay = parse_alpha(alpha)
    start_tokens = parse_start(start, max_tokens)
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    SamplingParams.resolve(given, {})
    template = None if chat_template is None else read_text(chat_template, "chat template")
    for name, given_text in (("--system", system), *(("--stop", text) for text in stop or ())):
        check_utf8(given_text or "", name)
    loaded = load(
        output,
        model_name,
        offline,
        threads,
        dtype=dtype.value,
        quantization=None if quantization is None else quantization.value,
        device=device,
        full_depth_only=decay == "off",
        prompt_tokens=estimate_tokens(prompt_text, system or ""),
        **({} if max_tokens is None else {"reply_tokens": max_tokens}),
        force=force,
    )
    core = (core_first, core_last)
    form = None if quantization is None else quantization.value
    command = calibrate_command(model_name, dtype.value, form)
    schedule, source = choose_schedule(output, loaded, decay, start_tokens, core, command)
    messages = [{"role": "user", "content": prompt_text}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    if not raw and not (template or loaded.tokenizer.chat_template):
        output.note("this model has no chat template: it continues the prompt as it is")

    from d3cli.engine import Engine

    reply = Engine(loaded).stream(
        prompt_text if raw else messages,
        schedule=schedule,
        sampling=SamplingParams.resolve(given, loaded.generation_settings),
        max_tokens=max_tokens,
        stop=stop or (),
        chat_template=template,
        think=None if think is None else think is options.Think.on,
        raw=raw,
    )
    _stream(output, reply, source, as_json)
    return 0


def _stream(output: Output, reply: "Reply", source: str, as_json: bool) -> None:
    try:
        signals.stop_in_order()
        if len(reply.prompt_ids) >= PROGRESS_FROM:
            output.track(reply.prefill(), len(reply.prompt_ids), "reading the prompt")
        for chunk in reply:
            if not as_json:
                output.write(chunk.text)
            signals.check()
    except (ClosedPipe, WriteError):
        raise
    except BaseException:  # interrupted or failed: what was generated until then is not lost
        with suppress(ClosedPipe, WriteError):  # whoever read stdout may be gone as well
            held = reply.release()
            if not as_json:
                output.write(held)
            _close(output, reply, source, as_json)
        raise
    else:
        _close(output, reply, source, as_json)
    finally:
        signals.exit_at_once()  # there is no more text to keep


def _close(output: Output, reply: "Reply", source: str, as_json: bool) -> None:
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
    parts.append(f"peak {stats.peak_memory_bytes / 1e9:.2f} GB")
    parts.append(f"stopped: {reply.finish_reason}")
    output.note(" · ".join(parts))


def _as_json(reply: "Reply", source: str) -> dict[str, Any]:
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
