"""What a chat shows of a reply beside full depth, and beside the reply that it replaces."""

from typing import TYPE_CHECKING

from d3cli.cli.chat.views import Rows
from d3cli.cli.format import agreement
from d3cli.decode.transcript import ChatMessage

if TYPE_CHECKING:
    from d3cli.decode.reply import Reply
    from d3cli.scoring.compare_reply import ReplyComparison


def beside_full_depth(reply: "Reply", found: "ReplyComparison") -> Rows:
    """The last reply compared with full depth."""
    rows = [("first different token", _first_difference(reply, found))]
    if reply.drafting is not None:
        same = found.agreement
        others = "; rounding decides the others" if same.agreed < same.compared else ""
        rows.append(("agreement", f"{agreement(same)} tokens{others}"))
    else:
        rows += _below_full_depth(found)
    if found.speedup is not None and found.seconds_saved is not None:
        saved, full = found.seconds_saved, reply.stats.decode_s + found.seconds_saved
        timed = f"{found.speedup:.2f}× the speed of full depth, {found.steps_timed} steps timed"
        if saved >= 0:
            rows.append(("seconds saved", f"about {saved:.2f} of {full:.2f} ({timed})"))
        else:
            rows.append(("seconds lost", f"about {-saved:.2f}, beside {full:.2f} ({timed})"))
    return rows


def _first_difference(reply: "Reply", found: "ReplyComparison") -> str:
    if found.redrawn:
        return "unknown: drafts draw other random numbers than full depth does with this seed"
    step = found.first_difference
    if step is None:
        return "none: full depth writes the same reply"
    at = "".join(reply.pieces[:step])[-40:].replace("\n", " ")
    return f'token {step:,}, after "…{at}"'


def _below_full_depth(found: "ReplyComparison") -> Rows:
    ratio = found.perplexity / found.full_perplexity
    rows = [("agreement", f"{agreement(found.agreement)} tokens below full depth")]
    if found.rounding is not None:
        best = f"{agreement(found.rounding)}, the best possible in this dtype"
        rows.append(("rounding alone", best))
    rows.append(
        (
            "perplexity of this reply",
            f"{found.perplexity:.3f} as written, {found.full_perplexity:.3f} by full depth: "
            f"ratio {ratio:.3f}",
        )
    )
    return rows


def where_they_differ(old: ChatMessage, before: "Reply | None", new: "Reply") -> str:
    """At which token two replies to the same message first differ."""
    if before is None:  # written in an earlier session, so only its text is known
        same = old.content == new.text
        return "the same text as before" if same else "not the same text as before"
    pairs = zip(before.tokens, new.tokens, strict=False)
    step = next((at for at, (a, b) in enumerate(pairs) if a.token_id != b.token_id), None)
    shorter = min(len(before.tokens), len(new.tokens))
    if step is None and len(before.tokens) == len(new.tokens):
        return f"the same {shorter:,} token{'' if shorter == 1 else 's'} as before"
    if step is None:
        return f"the same as before up to token {shorter:,}, where the shorter reply ends"
    was, now = (_word_at(reply.pieces, step) for reply in (before, new))
    return f'first different token: {step:,}, "{was}" before, "{now}" now'


def _word_at(pieces: list[str], step: int) -> str:
    return " ".join("".join(pieces[step : step + 6]).split())[:40]
