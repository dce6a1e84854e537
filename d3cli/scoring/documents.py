"""Documents to score: prompts and responses as token ids, and how they are batched."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d3cli.base.errors import PromptError
from d3cli.model.model import LoadedModel

# Positions of one batch. A CPU gains nothing from more; a GPU does.
CPU_BATCH, GPU_BATCH = 2048, 16384


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt and a response, as token ids. The response is what is scored."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def batch_positions(model: LoadedModel) -> int:
    """How many positions a batch may have on the model's device."""
    return GPU_BATCH if model.device.type == "cuda" else CPU_BATCH


def batch_rows(
    model: LoadedModel, documents: Sequence[Document], rows: Sequence[int]
) -> list[list[int]]:
    """Splits document numbers into batches of similar lengths, to keep the padding small."""
    positions = batch_positions(model)
    ordered = sorted(
        rows, key=lambda row: (len(documents[row].response_ids), len(documents[row].prompt_ids))
    )
    batches: list[list[int]] = []
    prompt = response = 0
    for row in ordered:
        prompt = max(prompt, len(documents[row].prompt_ids))
        response = max(response, len(documents[row].response_ids))
        if batches and (len(batches[-1]) + 1) * (prompt + response) <= positions:
            batches[-1].append(row)
        else:
            batches.append([row])
            prompt, response = len(documents[row].prompt_ids), len(documents[row].response_ids)
    return batches


def check_documents(model: LoadedModel, documents: Sequence[Document]) -> None:
    """Refuses documents that cannot be scored.

    Raises:
        PromptError: a document has an empty prompt or response, or exceeds the model's context.
    """
    for document in documents:
        if not document.prompt_ids or not document.response_ids:
            raise PromptError("a document to score has an empty prompt or response")
        if len(document) - 1 > model.context_length:
            raise PromptError(
                f"a document has {len(document):,} tokens, but the model's context holds "
                f"{model.context_length:,}"
            )


def response_ids(documents: Sequence[Document]) -> Tensor:
    """All response tokens, ``[T]``, document by document."""
    return torch.tensor([id_ for document in documents for id_ in document.response_ids])


def split_by_document(values: Tensor, documents: Sequence[Document]) -> tuple[Tensor, ...]:
    """One value per response token, ``[T, ...]``, as one tensor per document."""
    return torch.split(values, [len(document.response_ids) for document in documents])


@dataclass(frozen=True, slots=True)
class Padded:
    """A batch of documents as tensors: prompts padded on the left, responses on the right.

    All responses begin in the column `prompt_len`, so one prefix length per unit serves every row.

    Attributes:
        prompt_len: length of the longest prompt, P.
        new_tokens: length of the longest response, N.
        ids: ``[B, P + N - 1]``; the last response token of a row is predicted, not read.
        mask, positions: attention mask and position ids of the same shape. None if every row is
            full, so that attention takes its fast path.
    """

    prompt_len: int
    new_tokens: int
    ids: Tensor
    mask: Tensor | None
    positions: Tensor | None


def pad(documents: Sequence[Document], device: torch.device) -> Padded:
    """Pads documents into one batch."""
    prompt_len = max(len(document.prompt_ids) for document in documents)
    new_tokens = max(len(document.response_ids) for document in documents)
    width = prompt_len + new_tokens - 1
    ids = torch.zeros((len(documents), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    positions = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        begin = prompt_len - len(document.prompt_ids)
        tokens = [*document.prompt_ids, *document.response_ids[:-1]]
        ids[row, begin : begin + len(tokens)] = torch.tensor(tokens)
        mask[row, begin : begin + len(tokens)] = 1
        # Padding repeats a valid position, since learned positions end at the context.
        positions[row] = (torch.arange(width) - begin).clamp(0, len(tokens) - 1)
    if bool(mask.all()):
        return Padded(prompt_len, new_tokens, ids.to(device), None, None)
    return Padded(prompt_len, new_tokens, ids.to(device), mask.to(device), positions.to(device))


def unpad(hidden: Tensor, documents: Sequence[Document]) -> Tensor:
    """Removes the padding of the responses.

    Args:
        hidden: ``[B, >= N, H]``, from the last prompt position on.

    Returns:
        ``[T, H]``, document by document.
    """
    return torch.cat(
        [hidden[row, : len(document.response_ids)] for row, document in enumerate(documents)]
    )
