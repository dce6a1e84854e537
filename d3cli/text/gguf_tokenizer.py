"""A GGUF file's metadata as a tokenizer.

transformers' converter builds SentencePiece vocabularies, and most of the expressions that split
text are its own. What it gets wrong is corrected here: it lacks some of these expressions, adds
tokens that the file does not have, and cuts special tokens that are not ASCII into pieces. Knows
nothing of models or depth.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    GGUF_SENTENCEPIECE_BUILDERS,
    sentencepiece_tokenizer,
)

from d3cli.base.errors import ModelError, Words
from d3cli.files.json_files import OTHER_FORMAT
from d3cli.files.vet_vocabulary import CONTROL, USER_DEFINED, vet_vocabulary

_QWEN_2 = GGUF_PRE_TOKENIZER_SPLITS["qwen2"]
# Expressions that transformers lacks, by ggml's names (`tokenizer.ggml.pre`).
_SPLITS = {**GGUF_PRE_TOKENIZER_SPLITS, "stablelm2": _QWEN_2, "hunyuan": _QWEN_2}
# Several expressions are applied one after another, each to what the last one left.
_DEEPSEEK_CODER = ("[\\r\\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_SERIES = {"deepseek-coder": _DEEPSEEK_CODER}
# Each digit is a word; the rest is split as by GPT-2.
_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"}
_LIKE_GPT_2 = {"gpt-2", "phi-2", "olmo", "mpt", "jais"}
# A word that is a token is not merged from its parts, and a text begins with BOS unless the file
# says otherwise.
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"}


def gguf_tokenizer(architecture: str, metadata: Mapping[str, Any]) -> Any:
    """The tokenizer that the metadata of a GGUF file describes.

    Raises:
        ModelError: the metadata has none, or one that d3 cannot use.
    """

    def key(name: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}")

    vet_vocabulary(metadata)
    kind, tokens = key("model"), key("tokens")
    types = key("token_type") or [1] * len(tokens)
    if kind == "gpt2":
        backend = _byte_level(tokens, types, key("merges"), key("pre"))
    elif kind == "llama":
        parts = {name: key(name) for name in ("tokens", "scores", "merges") if key(name)}
        if len(parts) == 1:
            raise ModelError("it has neither scores nor merges", OTHER_FORMAT)
        backend = _sentencepiece(architecture, parts, prefixed=key("add_space_prefix"))
    else:
        raise ModelError(f"it is of the kind {kind!r:.40}, which d3 cannot use", OTHER_FORMAT)
    _add_tokens(backend, tokens, types)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ModelError("its chat template is not text", OTHER_FORMAT)
    begins = kind == "llama" or key("pre") in _WHOLE_WORDS
    named = {
        f"{name}_token": tokens[id_]
        for name, id_ in (
            ("bos", key("bos_token_id")),
            ("eos", key("eos_token_id")),
            ("unk", key("unknown_token_id")),
            ("pad", key("padding_token_id")),
        )
        if type(id_) is int and 0 <= id_ < len(tokens)
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_Handed(backend),
        **{"bos_token": None, "eos_token": None, **named},
        add_bos_token=begins if key("add_bos_token") is None else key("add_bos_token"),
        add_eos_token=bool(key("add_eos_token")),
        chat_template=template,
        clean_up_tokenization_spaces=False,
        # GGUF states the length after scaling.
        model_max_length=metadata.get(f"{architecture}.context_length"),
    )
    if len(tokenizer) > len(tokens):
        raise ModelError(
            f"it has {len(tokenizer):,} tokens in place of {len(tokens):,}", OTHER_FORMAT
        )
    return tokenizer


class _Handed:
    """Hands a tokenizer over. transformers would copy it, which takes seconds."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __deepcopy__(self, _: object) -> Tokenizer:
        return self._backend


def _byte_level(tokens: Any, types: Any, merges: Any, pre: Any) -> Tokenizer:
    """Byte-level BPE, as of GPT-2, Llama 3 and Qwen."""
    if not merges:
        raise ModelError("it has no merges", OTHER_FORMAT)
    spelling = bytes_to_unicode()
    alphabet = set(spelling.values())

    def spelled(token: str, kind: int) -> str:
        # The file holds added tokens as text, and other tokens in the alphabet of bytes.
        if kind in (CONTROL, USER_DEFINED) or alphabet.issuperset(token):
            return token
        return "".join(spelling[byte] for byte in token.encode())

    backend = Tokenizer(
        models.BPE(
            vocab={
                spelled(token, kind): id_
                for id_, (token, kind) in enumerate(zip(tokens, types, strict=True))
            },
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=pre in _WHOLE_WORDS,
        )
    )
    backend.pre_tokenizer = _word_splitter(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


def _word_splitter(pre: Any) -> Any:
    """Splits a text into the words that are tokenized one by one."""
    if pre in _SPLITS or pre in _SERIES:
        expressions = _SERIES.get(pre) or (_SPLITS[pre],)
        splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in expressions]
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, as_bytes])
    like_gpt_2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, like_gpt_2])
    return like_gpt_2


def tokenizer_notes(metadata: Mapping[str, Any]) -> tuple[Words, ...]:
    """What a user should know about the tokenizer."""
    pre = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return ()
    if any(pre in known for known in (_SPLITS, _SERIES, _DIGITS, _LIKE_GPT_2)):
        return ()
    if pre in (None, "default"):
        return ("the file does not say how text is split into words, so d3 splits it as GPT-2",)
    return (
        f"d3 does not know how a tokenizer of the type {pre!r:.40} splits text into words, and "
        "splits it as GPT-2",
    )


def _sentencepiece(architecture: str, parts: dict[str, Any], *, prefixed: Any) -> Tokenizer:
    """SentencePiece's BPE, as of Llama 2 and Gemma. The tables are those of transformers."""
    builder = GGUF_SENTENCEPIECE_BUILDERS.get(architecture, sentencepiece_tokenizer)
    built = builder(parts).backend_tokenizer
    backend = Tokenizer(built.model)  # without the added tokens of another model
    if built.normalizer is not None:
        backend.normalizer = built.normalizer
    if built.pre_tokenizer is not None:
        backend.pre_tokenizer = built.pre_tokenizer
    backend.decoder = built.decoder
    if builder is sentencepiece_tokenizer and prefixed is False:
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Replace(" ", "\u2581")
        backend.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    return backend


def _add_tokens(backend: Tokenizer, tokens: Any, types: Any) -> None:
    """Makes control and user-defined tokens whole wherever they stand in a text."""

    def of_kind(wanted: int, *, special: bool) -> list[AddedToken]:
        return [
            AddedToken(token, normalized=False, special=special)
            for token, kind in zip(tokens, types, strict=True)
            if kind == wanted and token and backend.token_to_id(token) is not None
        ]

    backend.add_special_tokens(of_kind(CONTROL, special=True))
    backend.add_tokens(of_kind(USER_DEFINED, special=False))
