"""Hostile GGUF files: each is a small change to the bytes of a good one."""

import struct
from collections.abc import Callable
from pathlib import Path

from tests.gguf_bytes import text

# Changes by name. The second argument is a directory outside of the model's.
Change = Callable[[bytes, Path], bytes]
REFUSED_GGUF: dict[str, Change] = {}
AT_TENSOR_COUNT, AT_KEY_COUNT = 8, 16
TOKENS, TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.chat_template"


def refused(change: Change) -> Change:
    REFUSED_GGUF[change.__name__] = change
    return change


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def after(data: bytes, name: str) -> int:
    """Where a key's type, or a tensor's number of dimensions, stands."""
    return data.index(text(name)) + len(text(name))


def with_template(data: bytes, template: str) -> bytes:
    """The file with another chat template, padded to the length of its own."""
    at = after(data, TEMPLATE) + 4
    (length,) = struct.unpack_from("<Q", data, at)
    padded = template.encode().ljust(length)
    assert len(padded) == length
    return replaced(data, at + 8, padded)


@refused
def a_header_that_is_cut(data: bytes, _: Path) -> bytes:
    return data[:3000]


@refused
def weights_that_are_cut(data: bytes, _: Path) -> bytes:
    return data[:-4096]


@refused
def more_tensors_than_bytes(data: bytes, _: Path) -> bytes:
    return replaced(data, AT_TENSOR_COUNT, struct.pack("<Q", 1 << 60))


@refused
def more_keys_than_bytes(data: bytes, _: Path) -> bytes:
    return replaced(data, AT_KEY_COUNT, struct.pack("<Q", 1 << 62))


@refused
def a_vocabulary_of_a_trillion_tokens(data: bytes, _: Path) -> bytes:
    return replaced(data, after(data, TOKENS) + 8, struct.pack("<Q", 1 << 40))


@refused
def a_name_of_an_exabyte(data: bytes, _: Path) -> bytes:
    return replaced(data, data.index(text("token_embd.weight")), struct.pack("<Q", 1 << 60))


@refused
def a_tensor_beyond_the_file(data: bytes, _: Path) -> bytes:
    at = after(data, "token_embd.weight") + 4 + 2 * 8 + 4  # after dimensions and type
    return replaced(data, at, struct.pack("<Q", 1 << 40))


@refused
def a_tensor_of_an_unknown_type(data: bytes, _: Path) -> bytes:
    return replaced(data, after(data, "token_embd.weight") + 4 + 2 * 8, struct.pack("<I", 999))


@refused
def a_tensor_that_overflows(data: bytes, _: Path) -> bytes:
    at = after(data, "token_embd.weight") + 4
    return replaced(data, at, struct.pack("<QQ", 1 << 33, 1 << 33))


@refused
def two_billion_layers(data: bytes, _: Path) -> bytes:
    return replaced(data, after(data, "llama.block_count") + 4, struct.pack("<I", 2**31 - 1))


@refused
def seven_heads(data: bytes, _: Path) -> bytes:
    return replaced(data, after(data, "llama.attention.head_count") + 4, struct.pack("<I", 7))


@refused
def big_endian(data: bytes, _: Path) -> bytes:
    return replaced(data, 4, struct.pack(">I", 3))


@refused
def a_template_that_reads_a_file(data: bytes, outside: Path) -> bytes:
    return with_template(data, f"{{% include '{(outside / 'secret.json').name}' %}}")


@refused
def a_template_that_escapes(data: bytes, _: Path) -> bytes:
    return with_template(data, "{{ ''.__class__.__mro__[1].__subclasses__() }}")


@refused
def a_template_that_cannot_be_parsed(data: bytes, _: Path) -> bytes:
    return with_template(data, "{% if %}")
