"""Writes docs/models.md from the table of families: python scripts/write_models_docs.py."""

from collections import defaultdict
from pathlib import Path
from textwrap import fill

from d3cli.depth.families import CANNOT_SKIP, FAMILIES, GGUF_ARCHITECTURES, GGUF_NOT_READ
from d3cli.files.gguf_types import NOT_READABLE, READABLE, RETIRED

TARGET = Path(__file__).parent.parent / "docs" / "models.md"

WIDTH = 100

HEAD = """# Models

Written by `scripts/write_models_docs.py` from the tables in `d3cli/depth/families.py` and
`d3cli/files/gguf_types.py`. Do not edit.

## Supported

Each family is proven by `tests/model/test_families.py` on a tiny random model, in float32: full
depth gives the tokens of `model.generate`; decayed decoding equals a slow reference without gate
and cache; one-pass scoring equals token-by-token decoding, alone and in unequal batches; a repaired
cache equals the full model's. Of real checkpoints, only SmolLM2-135M-Instruct (`llama`) was run.

| `model_type` | models | units | attention |
|---|---|---|---|
"""

NOTES = """
Of a mixture of experts, byte ratios count the experts that a token is routed to.

## Context

The context holds the prompt and the reply. Its length is `max_position_embeddings`, or more where
rope scaling was added to a model's config.json and `max_position_embeddings` was left as it was.
`--context N` (`context` in config.toml, `D3_CONTEXT`) sets a shorter one, or a longer one up to the
last column. d3 predicts memory for the context that is set.

| rope scaling | context | at most, with `--context` |
|---|---|---|
| none | `max_position_embeddings` | the same |
| YaRN | the original length × the factor, if that is longer | the same |
| linear | `max_position_embeddings` × the factor, or less (see below) | × the factor |
| Llama 3 | `max_position_embeddings`; if that is the original length, × the factor | the same |
| dynamic NTK | `max_position_embeddings` | × the factor |
| LongRoPE (Phi-3 128k) | the original length | `max_position_embeddings` |

A config with linear scaling may state the length before or after it. Gemma 3 states the one after
it. For other models, the tokenizer's `model_max_length` decides if it lies between the two.

For dynamic NTK and LongRoPE, transformers changes the rotary table when a text becomes longer than
the original context. Keys in the KV cache would keep the old table, so that a prefill in chunks, a
repair and one-pass scoring no longer agree. So d3 stops at the original context and says so. A
longer `--context` fixes the table for that length: all passes agree again, and a text of that
length is computed as by transformers, a shorter one slightly differently.

## Chat templates

A template that reads strings gets strings; one that reads only typed parts
(`[{"type": "text", "text": "…"}]`) gets those. A template that drops the system prompt, the last
message or an earlier turn is refused; [chat.md](chat.md#what-the-model-is-told) says what it may
do.

## Generation settings

What `generation_config.json` asks for is done as `generate` of transformers does it, by the same
processors in the same order: sampling (temperature, top-k, top-p, min-p, `top_h`, `typical_p`,
`epsilon_cutoff`, `eta_cutoff`), penalties (`repetition_penalty`, `encoder_repetition_penalty`,
`exponential_decay_length_penalty`), forbidden or forced tokens (`no_repeat_ngram_size`,
`encoder_no_repeat_ngram_size`, `bad_words_ids`, `suppress_tokens`, `begin_suppress_tokens`,
`sequence_bias`, `forced_bos_token_id`, `forced_eos_token_id`), `min_new_tokens`, `min_length`,
`renormalize_logits` and `stop_strings`. Without that file the settings in `config.json` count. A
note names what d3 ignores: beams, guidance, contrastive and DoLa decoding, watermarks, constraints,
token healing, quantized caches, and limits of length and time that are shorter than the context.

## Files

A model is a directory with `config.json`, safetensors and a tokenizer, a GGUF file, or a repository
on the hub. `--revision` chooses a branch, a tag or a commit of a repository. A stored calibration
counts for the commit that it was made for. A directory or a file that is moved or renamed keeps its
calibration.

- Weights: `model.safetensors` comes before the shards of `model.safetensors.index.json`, as in
  transformers. A directory that holds both, with different weights, is refused; of a repository on
  the hub, `model.safetensors` runs, with a note. An index whose shards are gone is ignored, with a
  note.
- Adapters: an adapter beside full weights is not applied, and a note says so. An adapter alone is
  refused: merge it into its base model with peft.
- Tokenizer: `tokenizer.json`, or the files that transformers converts to it. If there is only a
  SentencePiece model (`tokenizer.model`), install `sentencepiece` and `protobuf`.
- Pickled weights, Git LFS pointers and formats before GGUF are refused by name.

## GGUF

A file that begins with GGUF's magic is a model, whatever its name: `d3 generate ./model.gguf`. All
commands, config.toml and `load_model` take its path. They also take a directory or a cached
repository of the hub that holds one GGUF model; if it holds several, d3 lists them. Safetensors in
the same directory come first, with a note. `d3 models DIRECTORY` shows what a directory holds.

- ollama: `ollama show --modelfile NAME` prints the file's path after `FROM`, for example
  `~/.ollama/models/blobs/sha256-…`.
- llama.cpp: the files that it downloads with `-hf` are in `~/.cache/llama.cpp`, or in the hub's
  cache.
- The hub: `hf download ORG/NAME FILE.gguf`, then `d3 generate ORG/NAME`. d3 does not choose a
  quantization for you.
- Split models (`-00001-of-00003.gguf`): give any part; all parts must lie in one directory.

d3 computes in its own kernels, not in those of llama.cpp: while loading it unpacks each weight to
the dtype or the quantization that you ask for. So a file of 4 bits takes the memory of its weights
in bfloat16, unless you add `--quantization int4`. On a CPU that keeps the 4 bits of Q4_0, Q4_1 and
Q4_K as they are, with scales in the dtype of the activations; weights of other types, such as Q6_K
in a Q4_K_M file, are rounded again. `--quantization int8` and `nested` round again in any case: of
a file of 4 bits, the two planes of `nested` hold no more than `int4` does in half the bytes.
Config, tokenizer and chat template come from the file's metadata; other files beside it are not
read.

| `general.architecture` | `model_type` |
|---|---|
GGUF_ROWS
With experts, `llama` is Mixtral.

These types of weights are read: GGUF_TYPES.

transformers' reader makes the config and names the weights. It leaves out some of what changes the
computation. d3 adds it from the metadata: rope scaling of all kinds (for Llama 3.1 from the table
of frequencies), the share of each head that is rotated, the caps of Gemma 2's scores and logits and
the scale of its scores, Phi-3's sliding window, biases of Llama's layers, the tokens that end a
turn, and how a text is split into words. If a file does not say how text is split, a note says so.

Refused, each with its own sentence:

- files that hold no whole model: adapters, multimodal projectors (`mmproj`), importance matrices,
  vocabularies, a split model with a missing part or with parts of different conversions;
- GGUF_NOT_READ: transformers cannot read these architectures from GGUF, only from safetensors;
- any other architecture: nothing proves that it can skip layers;
- types of weights that ggml has removed (GGUF_RETIRED) or that nothing in Python unpacks
  (GGUF_NOT_UNPACKED);
- version 1 of the format, and big-endian files;
- damaged or hostile files: d3 reads the header before any other library does and compares every
  count, length and offset with the file's size
  ([reliability.md](reliability.md#models-from-strangers) says how that is tested).

## Prompts without a template

With `--raw`, and where a model has no chat template, the reply continues the prompt: the two join,
with the space between them. The tokenizer may put a BOS in front. An EOS or a separator that it
adds after a text is left out, since a model that reads one takes the text for finished.

## Refused

Any other decoder that transformers knows runs at full depth only, with `--alpha off`, after a trial
against transformers' own results. These are refused for a reason that will not go away:

"""


def gguf_docs() -> str:
    """The notes with the tables of GGUF filled in."""
    rows = "".join(f"| `{name}` | `{kind}` |\n" for name, kind in GGUF_ARCHITECTURES.items())
    lists = {
        "GGUF_NOT_READ": (f"`{name}`" for name in GGUF_NOT_READ),
        "GGUF_NOT_UNPACKED": NOT_READABLE.values(),
        "GGUF_RETIRED": RETIRED.values(),
        "GGUF_TYPES": (kind.name for kind in READABLE.values()),
    }
    text = NOTES.replace("GGUF_ROWS\n", f"{rows}\n")
    for mark, names in lists.items():
        text = text.replace(mark, ", ".join(names))
    return "\n".join(map(_wrapped, text.split("\n")))


def _wrapped(line: str) -> str:
    """A line of prose or of a list, at most 100 characters wide."""
    if line.startswith("|") or len(line) <= WIDTH:
        return line
    indent = "  " * line.startswith("- ")
    return fill(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def models_docs() -> str:
    """The whole page."""
    rows = [
        f"| `{name}` | {family.models} | "
        f"{'layers, sublayers' if family.has_sublayers else 'layers'} | {family.attention} |\n"
        for name, family in FAMILIES.items()
    ]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in CANNOT_SKIP.items():
        reasons[reason].append(f"`{name}`")
    refused = [f"- {', '.join(names)}: {reason}.\n" for reason, names in reasons.items()]
    return HEAD + "".join(rows) + gguf_docs() + "".join(refused)


if __name__ == "__main__":
    TARGET.write_text(models_docs(), encoding="utf-8")
    print(f"wrote {TARGET}")
