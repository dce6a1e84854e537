"""Turns the passes of a lossless reply into the trace's."""

from typing import Any

from d3cli.base.settings import BUILTIN
from d3cli.decode.reply import Reply
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.profile.run import Profiled, ProfileOptions, Run
from d3cli.profile.trace_lossless import DraftingTrace, LosslessTrace, PassTrace
from d3cli.text.control_tokens import skipped_tokens


def drafting_trace(options: ProfileOptions) -> DraftingTrace | None:
    """What was to draft; None unless the run is lossless."""
    drafting = options.drafting
    if drafting is None:
        return None
    return DraftingTrace(
        source=drafting.source,
        draft_model="the built-in model"
        if drafting.draft_model == BUILTIN
        else drafting.draft_model,
        schedule=options.schedule.to_json() | {"source": options.source},
    )


def lossless_trace(options: ProfileOptions, profiled: Profiled, run: Run) -> LosslessTrace | None:
    """The passes of a reply, as far as it has their tokens; None unless it is lossless."""
    drafting, reply = options.drafting, run.reply
    if drafting is None:
        return None
    order = reply.drafting.skip_order if reply.drafting is not None else ()
    step_s = run.step_s or drafting.drafter.step_s  # an interrupted run has none
    return LosslessTrace(
        step_ms=None if not step_s else 1000 * step_s,
        passes=tuple(
            PassTrace(
                step=done.step,
                tokens=done.tokens,
                source=done.source,
                draft_ids=done.draft_ids,
                accepted=done.accepted,
                draft_ms=1000 * done.draft_s,
                verify_ms=1000 * done.verify_s,
            )
            for done in reply.verifications
            if done.step < len(reply.tokens)
        ),
        skip_order=order if isinstance(options.schedule, PromptSchedule) else None,
        equality=profiled.equality,
    )


def drafted_fields(reply: Reply) -> list[dict[str, Any]]:
    """The fields of `TokenTrace` that say what was drafted, for each token of a reply."""
    fields: list[dict[str, Any]] = [{} for _ in reply.tokens]
    rejected: dict[int, tuple[int, ...]] = {}  # thrown away, by the step where
    for number, done in enumerate(reply.verifications):
        for token in reply.tokens[done.step : done.step + done.tokens]:
            fields[token.step] = {"pass_number": number, "drafted_by": token.drafted_by}
        if done.accepted < len(done.draft_ids):
            rejected[done.step + done.accepted] = done.draft_ids[done.accepted :]
    special = {token_id: text for text, token_id in skipped_tokens(reply.model.tokenizer).items()}
    stream = reply.new_detokenizer(special)
    for token, field in zip(reply.tokens, fields, strict=True):
        if token.step in rejected:
            field["rejected_text"] = stream.peek(*rejected[token.step])
        stream.push(token.token_id)
    return fields
