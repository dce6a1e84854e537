"""A reply's figures in words: the same after ``generate`` and in ``chat``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d3cli.decode.agreement import Agreement
    from d3cli.decode.reply import Reply


def speed(reply: "Reply") -> list[str]:
    """Tokens, tokens per second, TTFT and the layers used."""
    stats = reply.stats
    count = stats.completion_tokens
    parts = [f"{count:,} token{'' if count == 1 else 's'}"]
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.1f} tok/s")
    if stats.ttft_s is not None:
        parts.append(f"TTFT {stats.ttft_s:.2f} s")
    if stats.mean_depth is not None:
        parts.append(
            f"layers mean {stats.mean_depth:.1f}, min {stats.min_depth:.4g} of "
            f"{reply.model.num_layers}"
        )
    return parts


def agreement(found: "Agreement") -> str:
    """How often full depth would have agreed; empty where nothing ran below it."""
    if found.share is None:
        return ""
    return f"{found.share:.1%} of {found.compared:,}"
