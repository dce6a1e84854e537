"""The LM head over many positions, in chunks: few logits exist at once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from d3cli.base.errors import GenerationError, Setting
from d3cli.model.model import LoadedModel

# Bytes of float32 logits that exist at once: 64 positions of a 256k vocabulary.
HEAD_BYTES = 64 << 20


def not_finite() -> GenerationError:
    """The error of a model whose log-probabilities are NaN or infinite."""
    return GenerationError(
        "the model's log-probabilities are not finite",
        ("the weights may be damaged or the dtype too narrow: try ", Setting("dtype", "float32")),
    )


def head_chunk(model: LoadedModel) -> int:
    """How many positions the LM head may take at once."""
    return max(1, HEAD_BYTES // (4 * int(model.causal_lm.config.vocab_size)))


def chunks(model: LoadedModel, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits columns ``[T, ...]`` alike, into parts small enough for the LM head."""
    size = head_chunk(model)
    return zip(*(torch.split(column, size) for column in columns), strict=True)


def top_choices(model: LoadedModel, states: Tensor) -> Tensor:
    """The argmax of the logits of final hidden states ``[T, H]``; ``[T]`` on the CPU."""
    return torch.cat([model.logits(part).argmax(dim=-1) for (part,) in chunks(model, states)]).cpu()


def log_probs_of(model: LoadedModel, states: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probabilities of ``token_ids`` ``[T]``; row t of ``states`` ``[T, H]`` predicts token t.

    Returns:
        ``[T]`` float64 on the CPU, natural logarithms.
    """
    found = []
    for part, wanted in chunks(model, states, token_ids.to(states.device)):
        found.append(_picked(model.logits(part), wanted))
    return torch.cat(found)


def log_probs_and_tops(
    model: LoadedModel, states: Tensor, token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """As `log_probs_of`, and the top choices ``[T]`` of the same logits, on the CPU."""
    log_probs, tops = [], []
    for part, wanted in chunks(model, states, token_ids.to(states.device)):
        logits = model.logits(part)  # [S, V]
        log_probs.append(_picked(logits, wanted))
        tops.append(logits.argmax(dim=-1).cpu())
    return torch.cat(log_probs), torch.cat(tops)


def _picked(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probabilities ``[S]`` of one token each, from ``logits`` ``[S, V]``."""
    picked = logits.gather(-1, token_ids[:, None])[:, 0]
    return (picked - logits.logsumexp(dim=-1)).double().cpu()
