"""A reply compared with full depth, on the reply's own tokens: where they differ, and time saved.

A lossless reply can differ only by rounding, and its passes have timed plain steps themselves. Two
passes over the reply and a few timed steps. The conversation before it is not read again, so
this is not `compare`, which reads whole documents. Knows nothing of terminals.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from d3cli.decode.agreement import Agreement
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.kv_cache import PREFILL_CHUNK
from d3cli.scoring.documents import Document
from d3cli.scoring.head import chunks, top_choices
from d3cli.scoring.step_times import StepTimes

# Decode steps that are timed at both depths, each twice, spread over the reply.
TIMED_STEPS = 6


@dataclass(frozen=True, slots=True)
class ReplyComparison:
    """A reply beside full depth.

    Attributes:
        tokens: how many the reply has.
        first_difference: the first step at which full depth, with the same seed, would have chosen
            another token; None if it would have written the same reply, and for a lossless reply
            that is `redrawn`.
        agreement: how often the raw argmax was full depth's, over the tokens below full depth; in a
            lossless reply, over all decode steps.
        rounding: how often the raw argmax stays the same when the same depth reads many tokens at
            once: the highest agreement that the dtype can show. None if the reply followed
            approximate keys and values, which are not computed again.
        perplexity, full_perplexity: of the reply, by the pass that wrote it and by full depth.
        speedup: full depth's time for a step over this reply's, from steps timed in turn; None for
            a reply of one token.
        seconds_saved: of the reply's decoding time, at that speed-up.
        steps_timed: how many steps were timed.
        redrawn: whether drafts were drawn in a lossless reply, which then has full depth's
            distribution, but not the tokens that full depth would draw with this seed.
    """

    tokens: int
    first_difference: int | None
    agreement: Agreement
    rounding: Agreement | None
    perplexity: float
    full_perplexity: float
    speedup: float | None
    seconds_saved: float | None
    steps_timed: int
    redrawn: bool = False


def compare_reply(engine: Engine, reply: Reply) -> ReplyComparison:
    """Compares the engine's last reply with full depth.

    Afterwards the engine's cache holds the prompt and a part of the reply, at full depth.
    """
    for _ in engine.read_ahead(reply.prompt_ids[:-1]):
        pass
    model, passes = reply.model, reply.verifications
    lossless = reply.drafting is not None
    ids = torch.tensor([token.token_id for token in reply.tokens])
    ours = torch.cat(list(_states(engine, reply, reply.schedule)))
    full = ours
    if not lossless:
        full = torch.cat(list(_states(engine, reply, DepthSchedule.full(model.num_layers))))
    our_tops = torch.tensor([token.top_id for token in reply.tokens])
    below = torch.tensor(
        [token.step > 0 and (lossless or token.depth < model.num_layers) for token in reply.tokens]
    )
    redrawn = not reply.sampling.is_greedy and any(
        done.source in ("depth", "model") for done in passes
    )
    full_tops, surprise, first = _full_depth(reply, full, ids)
    if reply.stats.lossless is not None:
        speedup = reply.stats.lossless.speedup
        steps = sum(done.source is None for done in passes)
    else:
        speedup, steps = _measure_speedup(engine, reply)
    return ReplyComparison(
        tokens=len(ids),
        first_difference=None if redrawn else first,
        agreement=_agreement(our_tops, full_tops, below),
        rounding=_agreement(our_tops, top_choices(model, ours), below)
        if reply.prompt_is_exact
        else None,
        perplexity=math.exp(-math.fsum(token.logprob for token in reply.tokens) / len(ids)),
        full_perplexity=math.exp(surprise / len(ids)),
        speedup=speedup,
        seconds_saved=None if speedup is None else reply.stats.decode_s * (speedup - 1),
        steps_timed=steps,
        redrawn=redrawn,
    )


def _states(engine: Engine, reply: Reply, schedule: DepthSchedule) -> Iterator[Tensor]:
    """Yields the final hidden states that predict the reply's tokens, ``[S, H]`` per chunk.

    As in one-pass scoring, each unit runs on a prefix of the positions. Here they follow a prompt
    in the cache, which must hold all of it except its last token.
    """
    model, cache = engine.model, engine.cache
    prompt_len = len(reply.prompt_ids)
    cache.crop(prompt_len - 1)
    token_ids = [reply.prompt_ids[-1], *(token.token_id for token in reply.tokens[:-1])]
    lengths = schedule.prefix_lengths(prompt_len, len(reply.tokens))
    for offset in range(0, len(token_ids), PREFILL_CHUNK):
        ids = torch.tensor([token_ids[offset : offset + PREFILL_CHUNK]], device=model.device)
        end = cache.position + ids.shape[1]
        limits = {
            unit: max(0, length - cache.position)
            for unit, length in lengths.items()
            if length < end
        }
        hidden = model.hidden_states(ids, cache, limits=limits)
        cache.commit(ids.shape[1], full_depth=not limits)
        yield hidden[0]


def _full_depth(reply: Reply, states: Tensor, ids: Tensor) -> tuple[Tensor, float, int | None]:
    """Full depth's view of the reply.

    Returns:
        Its top choices ``[N]``, its surprise at the reply in nats, and the first step at which it
        would have chosen another token.
    """
    sampler = reply.new_sampler()
    context, first, surprise, tops = list(reply.prompt_ids), None, 0.0, []
    for (part,) in chunks(reply.model, states):
        logits = reply.model.logits(part)  # [S, V]
        tops.append(logits.argmax(dim=-1).cpu())
        for row in logits:
            step = len(context) - len(reply.prompt_ids)
            token_id = int(ids[step])
            surprise += float(row.logsumexp(dim=-1) - row[token_id])
            # The same seed draws the same numbers as long as the replies are the same.
            if first is None and sampler.choose(row, context) != token_id:
                first = step
            context.append(token_id)
    return torch.cat(tops), surprise, first


def _measure_speedup(engine: Engine, reply: Reply) -> tuple[float | None, int]:
    """Times steps of the reply at full depth and at its own, in turn.

    The cache must hold all but the reply's last token, at full depth.

    Returns:
        The speed-up, None for a reply of one token, and how many steps were timed.
    """
    document = Document(reply.prompt_ids, [token.token_id for token in reply.tokens])
    times = StepTimes(engine.model, engine.cache, document, reply.schedule, 1, TIMED_STEPS)
    for _ in times:
        pass
    engine.cache.crop(engine.cache.full_length)
    if not times.steps:
        return None, 0
    return sum(times.full) / sum(times.own), len(times.steps)


def _agreement(ours: Tensor, theirs: Tensor, below: Tensor) -> Agreement:
    return Agreement(int(below.sum()), int((ours == theirs)[below].sum()))
