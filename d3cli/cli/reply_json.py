"""A reply as the JSON object that ``d3 generate`` prints, for one prompt and for a batch."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from d3cli.cli.request import Ready
from d3cli.depth.choice import Source
from d3cli.depth.prompt_order import PromptSchedule
from d3cli.text.reasoning import split_reasoning

if TYPE_CHECKING:
    from d3cli.decode.reply import Reply

SCHEMA = 1


def reply_as_json(reply: "Reply", inside: str, ready: Ready) -> dict[str, Any]:
    """A reply as one JSON object; the help of ``d3 generate`` describes it.

    Args:
        inside: the opening tag at the end of the prompt, if the reply begins within reasoning.
    """
    reasoning, answer = split_reasoning(inside + reply.text)
    by_prompt = {"order": "prompt"} if isinstance(reply.asked, PromptSchedule) else {}
    asked = by_prompt | {"source": ready.source}  # of the schedule that was asked for
    stats = asdict(reply.stats)
    drafted, drafting = stats.pop("lossless"), ready.request.drafting
    if drafting is not None and reply.drafting is not None:
        drops = bool(reply.drafting.dropped(1))  # else full depth would draft for itself
        schedule = reply.drafting.to_json() | asked if drops else None
        asked = {"source": Source.OFF}
        named = {"source": drafting.source, "draft_model": drafting.model}
        drafted = named | {"schedule": schedule} | drafted
    return {
        "schema": SCHEMA,
        "model": reply.model.name,
        "dtype": reply.model.dtype,
        "quantization": reply.model.origin.quantization,
        "text": reply.text,  # all of it, with reasoning and tags
        "reasoning": reasoning or None,
        "answer": answer,
        "finish_reason": reply.finish_reason,
        "schedule": reply.schedule.to_json() | asked,
        "lossless": drafted,
        "stats": stats,
        "tokens": [
            {
                "step": token.step,
                "token_id": token.token_id,
                "text": piece,
                "depth": token.depth,
                "logprob": token.logprob,
                "drafted_by": token.drafted_by,
            }
            for token, piece in zip(reply.tokens, reply.pieces, strict=False)
        ],
    }
