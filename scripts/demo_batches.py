"""The demo model's tokenizer, and its training stream as packed batches of token ids.

The stream is cut into blocks of dialogues; a block is packed into windows of 256, 512 and 1,024
tokens without splitting a dialogue, and its windows become batches in a seeded order. So a
position in the stream is (block, batch), and a run that continues sees what it would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

import torch
from demo_cast import NAMES
from demo_text import Document, document
from demo_world import PET_NAMES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 2048
CONTEXT = 1024
BOS, END, SYSTEM, USER, ASSISTANT, PAD = SPECIAL_TOKENS = (
    "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
BLOCK_DOCUMENTS = 1024
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids` and `labels` [B, S]; labels hold the next token where it is part of a reply."""

    block: int
    number: int
    ids: torch.Tensor
    labels: torch.Tensor


def build_tokenizer(seed: int, documents: int = 20_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training text, with digits split one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (m["content"] for i in range(documents) for m in document(seed, i).messages)
    # Repeats the names so often that each becomes one token.
    names = (" ".join(("", *NAMES, *PET_NAMES)) for _ in range(documents // 50))
    tokenizer.train_from_iterator(chain(texts, names), trainer)
    # Plain text gets a BOS at its start, as with other Llamas. The chat template has its own.
    first = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[first])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def name_weights(tokenizer: PreTrainedTokenizerFast, weight: float) -> torch.Tensor:
    """The weight of each token [V] in the loss: `weight` for names, 1 for all others."""
    weights = torch.ones(len(tokenizer))
    for name in NAMES:
        ids = tokenizer.encode(f" {name}", add_special_tokens=False)
        if len(ids) == 1:
            weights[ids] = weight
    return weights


def in_short_replies(labels: torch.Tensor, most: int = 16) -> torch.Tensor:
    """Whether each label [B, S] belongs to a reply of at most `most` tokens: facts, mostly."""
    scored = (labels != IGNORED).flatten()
    before = torch.cat((torch.zeros(1, dtype=torch.bool), scored[:-1]))
    reply = (scored & ~before).cumsum(0)
    sizes = torch.bincount(reply[scored], minlength=int(reply[-1]) + 1)
    return (scored & (sizes[reply] <= most)).view_as(labels)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(directory)


def encode(tokenizer: PreTrainedTokenizerFast, found: Document) -> tuple[list[int], list[bool]]:
    """The dialogue's ids, and for each whether it belongs to a reply (its end token included)."""
    ids, scored = [tokenizer.convert_tokens_to_ids(BOS)], [False]
    for message in found.messages:
        text = tokenizer.encode(message["content"], add_special_tokens=False)
        role = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        turn = [role, *text, tokenizer.convert_tokens_to_ids(END)]
        ids += turn
        scored += [False] + [message["role"] == "assistant"] * (len(turn) - 1)
    return ids, scored


def _window(length: int, rng: Random) -> int:
    """The window size for a dialogue: short ones mostly go to short windows, for speed."""
    roll = rng.random()
    if length <= 256 and roll < 0.72:
        return 256
    return 512 if length <= 512 and roll < 0.87 else CONTEXT


def pack(sizes: list[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """First fit: (window size, positions in `sizes`) for (length, window size) pairs."""
    bins: list[tuple[int, list[int]]] = []
    room: list[int] = []
    for at, (length, window) in enumerate(sizes):
        for i, (size, members) in enumerate(bins):
            if size == window and room[i] >= length:
                members.append(at)
                room[i] -= length
                break
        else:
            bins.append((window, [at]))
            room.append(window - length)
    return bins


def _block(
    tokenizer: PreTrainedTokenizerFast, seed: int, block: int, tokens: int, part: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of one block, each of about `tokens` positions and one window size."""
    rng = Random(f"block:{seed}:{block}")
    start = block * BLOCK_DOCUMENTS
    found = [encode(tokenizer, document(seed, start + i, part)) for i in range(BLOCK_DOCUMENTS)]
    found = [row for row in found if len(row[0]) <= CONTEXT]
    sizes = [(len(ids), _window(len(ids), rng)) for ids, _ in found]
    pad = tokenizer.pad_token_id
    by_size: dict[int, list[tuple[list[int], list[int]]]] = {}
    for size, members in pack(sizes):
        ids = [i for m in members for i in found[m][0]]
        scored = [s for m in members for s in found[m][1]]
        labels = [i if s else IGNORED for i, s in zip(ids, scored, strict=True)][1:]
        row = ids + [pad] * (size - len(ids)), labels + [IGNORED] * (size - len(labels))
        by_size.setdefault(size, []).append(row)
    batches = []
    for size, rows in sorted(by_size.items()):
        rng.shuffle(rows)
        parts = max(1, round(len(rows) * size / tokens))
        for part in range(parts):
            chosen = rows[part::parts]
            ids, labels = zip(*chosen, strict=True)
            batches.append((torch.tensor(ids), torch.tensor(labels)))
    rng.shuffle(batches)
    return batches


def stream(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    tokens: int,
    block: int = 0,
    number: int = 0,
    part: int = 0,
) -> Iterator[Batch]:
    """Yields batches endlessly, from batch `number` of `block` on; `part` chooses the mix."""
    while True:
        for at, (ids, labels) in enumerate(_block(tokenizer, seed, block, tokens, part)):
            if at >= number:
                yield Batch(block, at, ids, labels)
        block, number = block + 1, 0
