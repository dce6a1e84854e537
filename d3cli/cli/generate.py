"""``d3 generate``: one reply, for people and for pipes."""

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d3cli.cli import options, signals
from d3cli.cli.completion import complete_model
from d3cli.cli.figures import speed
from d3cli.cli.output import PROGRESS_FROM, ClosedPipe, Output, WriteError
from d3cli.cli.prompts import read_arguments
from d3cli.cli.request import Request
from d3cli.depth.choice import Source

if TYPE_CHECKING:
    from d3cli.decode.reply import Reply

SCHEMA = 1


def generate(
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
    quantize_head: options.QuantizeHead = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    force: options.Force = False,
    verify: options.Verify = False,
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
    if raw and not options.was_typed(ctx, "system"):
        system = None  # config.toml's is for chat templates
    model_name, prompt_text = read_arguments(model, text, prompt, prompt_file)
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
    ready = request.prepare(output, model_name, prompt_text)
    messages = [{"role": "user", "content": prompt_text}]
    if system:
        messages.insert(0, {"role": "system", "content": system})

    from d3cli.decode.session import Engine

    reply = Engine(ready.model).stream(
        prompt_text if raw else messages,
        schedule=ready.schedule,
        sampling=ready.sampling,
        max_tokens=max_tokens,
        stop=stop or (),
        chat_template=ready.chat_template,
        think=ready.think,
        raw=raw,
    )
    _stream(output, reply, ready.source, as_json)
    return 0


def _stream(output: Output, reply: "Reply", source: Source, as_json: bool) -> None:
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
    parts.append(f"peak {stats.peak_memory_bytes / 1e9:.2f} GB")
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
