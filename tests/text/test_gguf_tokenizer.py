"""Tokenizers from the metadata of GGUF files, without the files."""

from typing import Any

import pytest
from transformers.integrations.gguf import convert_gguf_tokenizer

from d3cli.base.errors import ModelError
from d3cli.text.gguf_tokenizer import gguf_tokenizer, tokenizer_notes
from tests.gguf_models import EOS, EOT, SPECIAL, TEMPLATE, VOCABULARY, tokenizer_keys

TEXTS = (
    "the fox, a fox",
    "12  12\n\n  the\t12 0.5",
    "It's   THE'LL naïve 日本語 🦊🦊",
    "def f(x):\n    return x + 12\n",
    " leading and trailing ",
)


def sentencepiece_keys(**changed: Any) -> dict[str, Any]:
    """A small vocabulary of SentencePiece: bytes, letters, and words that merge."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*"▁abcdefo x", "▁a", "fo", "fox", "▁fox", "▁▁"]
    tokens += [piece for piece in pieces if piece != " "] + ["<turn>"]
    plain = len(tokens) - 260
    keys: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [-float(id_) for id_ in range(len(tokens))],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * plain, 4],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    keys |= changed
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def pieces(tokenizer: Any, text: str, **options: Any) -> list[str]:
    ids = tokenizer(text, **options).input_ids
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "tekken", "smollm", "deepseek-coder", None])
def test_text_comes_back_as_it_was(pre: Any) -> None:
    tokenizer = gguf_tokenizer("llama", tokenizer_keys(pre))
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("pre", ["qwen2", "gpt-2"])
def test_ids_are_those_of_transformers_where_it_knows_the_expression(pre: str) -> None:
    keys = tokenizer_keys(pre)
    names = ("tokens", "merges", "token_type")
    parts = {name: keys[f"tokenizer.ggml.{name}"] for name in names}
    parts |= {"tokenizer_type": "gpt2", "pre_tokenizer_type": pre}
    own, _ = convert_gguf_tokenizer("llama", parts)
    tokenizer = gguf_tokenizer("llama", keys)
    for text in TEXTS:
        found = tokenizer(text, add_special_tokens=False).input_ids
        assert found == own.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("qwen2", "12", ["1", "2"]),
        ("llama-bpe", "12", ["12"]),
        # By first principles: each digit is a word, so spaces before it are another.
        ("smollm", " 12", ["Ġ", "1", "2"]),
        ("smollm", "  12", ["ĠĠ", "1", "2"]),
        ("gpt-2", "  12", ["Ġ", "Ġ12"]),
        ("stablelm2", "12", ["1", "2"]),
        ("deepseek-coder", " fox", ["Ġ", "fox"]),
    ],
)
def test_text_is_split_as_the_type_of_the_tokenizer_says(
    pre: str, text: str, expected: list[str]
) -> None:
    tokenizer = gguf_tokenizer("llama", tokenizer_keys(pre))
    assert pieces(tokenizer, text, add_special_tokens=False) == expected


def test_special_tokens_stay_whole_whatever_their_characters() -> None:
    """transformers cuts those that are not ASCII into pieces, as of DeepSeek's models."""
    tokenizer = gguf_tokenizer("qwen2", tokenizer_keys())
    assert tokenizer("".join(SPECIAL)).input_ids == [EOS, EOS + 1, EOS + 2, EOS + 3]
    assert tokenizer.decode([EOS + 3], skip_special_tokens=True) == ""


def test_no_token_is_added_that_the_model_has_no_weights_for() -> None:
    for keys in (tokenizer_keys(), sentencepiece_keys()):
        tokens = keys["tokenizer.ggml.tokens"]
        tokenizer = gguf_tokenizer("llama", keys)
        assert len(tokenizer) == len(tokens)
        assert max(tokenizer("<unk><s></s><pad><|endoftext|>").input_ids) < len(tokens)


def test_named_tokens_and_the_template_come_from_the_metadata() -> None:
    tokenizer = gguf_tokenizer("qwen2", tokenizer_keys())
    assert tokenizer.eos_token_id == EOS and EOT in tokenizer.added_tokens_decoder
    assert tokenizer.bos_token is None and tokenizer.pad_token is None
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.vocab_size == VOCABULARY


def test_a_sentencepiece_vocabulary_merges_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = gguf_tokenizer("llama", sentencepiece_keys())
    assert pieces(tokenizer, "fox") == ["<s>", "▁fox"]
    assert pieces(tokenizer, "a é") == ["<s>", "▁a", "▁", "<0xC3>", "<0xA9>"]
    for text in ("fox a  fox", "naïve 🦊"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text


def test_a_space_is_put_in_front_only_if_the_file_wants_it() -> None:
    tokenizer = gguf_tokenizer("llama", sentencepiece_keys(add_space_prefix=False))
    assert pieces(tokenizer, "fox a") == ["<s>", "fox", "▁a"]
    assert tokenizer.decode(tokenizer(" fox").input_ids[1:]) == " fox"


def test_user_defined_tokens_stay_whole_and_visible() -> None:
    tokenizer = gguf_tokenizer("llama", sentencepiece_keys())
    ids = tokenizer("a<turn>").input_ids
    assert ids[-1] == len(tokenizer) - 1
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("<turn>")


@pytest.mark.parametrize(
    ("keys", "begins"),
    [
        (tokenizer_keys("qwen2"), False),
        (sentencepiece_keys(), True),
        (sentencepiece_keys(add_bos_token=False), False),
        (tokenizer_keys("llama-bpe") | {"tokenizer.ggml.bos_token_id": EOS}, False),
        (
            tokenizer_keys("llama-bpe")
            | {"tokenizer.ggml.bos_token_id": EOS, "tokenizer.ggml.add_bos_token": None},
            True,
        ),
    ],
    ids=["qwen2", "llama", "llama without", "llama 3 without", "llama 3 by default"],
)
def test_a_text_begins_with_bos_as_in_llama_cpp(keys: dict[str, Any], *, begins: bool) -> None:
    tokenizer = gguf_tokenizer("llama", keys)
    assert (tokenizer("fox").input_ids[0] == tokenizer.bos_token_id) is begins


def test_a_word_that_is_a_token_needs_no_merges_in_llama_3() -> None:
    keys = tokenizer_keys("llama-bpe")
    keys["tokenizer.ggml.merges"] = ["1 2"]
    assert pieces(gguf_tokenizer("llama", keys), "fox", add_special_tokens=False) == ["fox"]
    keys["tokenizer.ggml.pre"] = "qwen2"
    found = pieces(gguf_tokenizer("qwen2", keys), "fox", add_special_tokens=False)
    assert found == ["f", "o", "x"]


@pytest.mark.parametrize(
    ("pre", "note"),
    [
        ("qwen2", ""),
        ("smollm", ""),
        (None, "does not say how text is split"),
        ("default", "does not say how text is split"),
        ("tomorrow", "does not know how a tokenizer of the type 'tomorrow'"),
    ],
)
def test_a_doubtful_split_is_said(pre: Any, note: str) -> None:
    notes = tokenizer_notes(tokenizer_keys(pre))
    assert [note in str(each) for each in notes] == ([True] if note else [])
    assert not tokenizer_notes(sentencepiece_keys())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": None}, "holds no tokenizer"),
        ({"tokens": ()}, "holds no tokenizer"),
        ({"model": "rwkv"}, "of the kind 'rwkv'"),
        ({"merges": None}, "has no merges"),
        ({"token_type": [1, 2]}, "2 types of tokens"),
        ({"tokens": ["x" * 20_000] * VOCABULARY}, "a token of 20,000 characters"),
    ],
)
def test_metadata_without_a_usable_tokenizer_is_refused(
    changed: dict[str, Any], message: str
) -> None:
    keys = tokenizer_keys() | {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    with pytest.raises(ModelError, match=message):
        gguf_tokenizer("llama", keys)


def test_too_many_added_tokens_are_refused() -> None:
    keys = tokenizer_keys()
    keys["tokenizer.ggml.tokens"] = [f"<{id_}>" for id_ in range(40_000)]
    keys["tokenizer.ggml.token_type"] = [3] * 40_000
    with pytest.raises(ModelError, match="40,000 added tokens"):
        gguf_tokenizer("llama", keys)
