"""``d3 profile --policy``: a rival in place of D³, at the bytes that D³ would read."""

from dataclasses import replace

from d3cli.base.errors import ScheduleError, Setting, UsageError
from d3cli.cli.options import GenerationOptions
from d3cli.cli.output import Output
from d3cli.cli.request import Ready
from d3cli.depth.choice import Source
from d3cli.depth.policies import Policy, at_byte_ratio, byte_ratio_of
from d3cli.depth.prompt_order import PromptSchedule

# The length of replies at which bytes are equal, without --max-tokens.
REPLY_TOKENS = 256


def check_policy(policy: Policy, reply: GenerationOptions) -> None:
    """Refuses, before a model is loaded, a rival that has no schedule of D³ to match.

    Raises:
        UsageError: replies are lossless, or at full depth.
    """
    if policy is Policy.D3:
        return
    if reply.drafts.read() is not None:
        raise UsageError(
            (Setting("policy", policy), " and ", Setting("lossless"), " exclude each other: a "
             "lossless reply runs at full depth"),
            "leave one of them out",
        )  # fmt: skip
    if reply.depth.alpha == "off":
        raise UsageError(
            (Setting("policy", policy), " reads as many bytes as D³ would, and ",
             Setting("alpha", "off"), " drops nothing"),
            ("use a number such as ", Setting("alpha", "0.99"), ", or leave out ",
             Setting("policy")),
        )  # fmt: skip


def with_policy(output: Output, ready: Ready, policy: Policy) -> Ready:
    """The policy's schedule in place of the one that D³ would run, at about its byte ratio.

    Raises:
        UsageError: D³ would read all bytes, so there is no ratio to match.
        ScheduleError: the model is too small for the policy.
    """
    if policy is Policy.D3:
        return ready
    tokens = ready.request.max_tokens or min(REPLY_TOKENS, ready.model.context_length)
    weights, lengths = ready.model.weight_bytes, [tokens]
    ratio = byte_ratio_of(ready.schedule, weights, lengths)
    if ratio <= 1:
        raise UsageError(
            (Setting("policy", policy), " reads as many bytes as D³ would, and here D³ drops "
             f"nothing in replies of up to {tokens:,} token{'' if tokens == 1 else 's'}"),
            ("use a number such as ", Setting("alpha", "0.99"), ", or run d3 calibrate first"),
        )  # fmt: skip
    found = at_byte_ratio(policy, ready.schedule, weights, lengths, ratio)
    if found is None:
        raise ScheduleError(
            f"{policy.in_words} needs a model of at least three layers, and {ready.model.name} has "
            f"{ready.model.num_layers}",
            ("leave out ", Setting("policy")),
        )
    # A prompt that orders parts of layers decides how many bytes go, and it was not read yet.
    by_prompt = isinstance(ready.schedule, PromptSchedule) and ready.schedule.kind != "layer"
    about = "about " if by_prompt else ""
    output.note(
        f"policy: {policy.in_words}, {found.in_words()}; in replies of {tokens:,} tokens its byte "
        f"ratio is {about}{byte_ratio_of(found, weights, lengths):.2f}×, that of D³ "
        f"{about}{ratio:.2f}×"
    )
    return replace(ready, schedule=found, source=Source.FLAGS)
