"""What is scored: a prompt and a response as token ids, and which of them make a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from d3cli.model.model import LoadedModel


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt and the response whose tokens are scored, as token ids."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


# Positions of one batch. Larger ones gain nothing on a CPU; a GPU wants more at once.
CPU_BATCH, GPU_BATCH = 2048, 16384


def batch_rows(
    model: LoadedModel, documents: Sequence[Document], rows: Sequence[int]
) -> list[list[int]]:
    """Numbers of documents to score together: of like length, so that little is padding."""
    positions = _batch_positions(model)
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


def _batch_positions(model: LoadedModel) -> int:
    return GPU_BATCH if model.device.type == "cuda" else CPU_BATCH
