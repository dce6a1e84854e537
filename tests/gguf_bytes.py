"""GGUF files byte by byte, so that tests can also write what no library would write."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STRING, ARRAY = 8, 9
U16, U32, I32, F32, BOOL, U64 = 2, 4, 5, 6, 7, 10
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNMENT = 32


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind: int, content: Any) -> bytes:
    """A value without its type. A list is (type of its items, items)."""
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        inner, items = content
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, i) for i in items)
    return struct.pack(f"<{FORMS[kind]}", content)


def typed(content: Any) -> tuple[int, Any]:
    """A Python value with a type that fits."""
    if isinstance(content, bool):
        return BOOL, content
    if isinstance(content, str | bytes):
        return STRING, content
    if isinstance(content, float):
        return F32, content
    if isinstance(content, int):
        return U32, content
    return ARRAY, (typed(content[0])[0], content)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a header describes it, in ggml's order of dimensions, and its data."""

    name: str | bytes
    dims: Sequence[int]
    type: int = 0
    data: bytes = b""
    offset: int | None = None  # None: after the one before it


@dataclass
class Gguf:
    """A GGUF file; every part can be replaced by nonsense."""

    keys: dict[Any, Any] = field(default_factory=dict)  # values, or (type, content)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    counts: tuple[int, int] | None = None
    more_keys: list[bytes] = field(default_factory=list)
    magic: bytes = b"GGUF"

    def header(self) -> bytes:
        counts = (len(self.tensors), len(self.keys) + len(self.more_keys))
        parts = [self.magic, struct.pack("<IQQ", self.version, *(self.counts or counts))]
        for key, content in self.keys.items():
            parts.append(
                key_bytes(key, *(content if isinstance(content, tuple) else typed(content)))
            )
        parts += self.more_keys
        offset = 0
        for tensor in self.tensors:
            place = offset if tensor.offset is None else tensor.offset
            parts.append(
                text(tensor.name)
                + struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
                + struct.pack("<IQ", tensor.type, place)
            )
            offset = padded(offset + len(tensor.data))
        return b"".join(parts)

    def encode(self) -> bytes:
        data = self.header()
        data += bytes(padded(len(data)) - len(data))
        for tensor in self.tensors:
            data += tensor.data + bytes(padded(len(tensor.data)) - len(tensor.data))
        return data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path


def key_bytes(key: str | bytes, kind: int, content: Any) -> bytes:
    return text(key) + struct.pack("<I", kind) + value(kind, content)


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def parse(data: bytes) -> Gguf:
    """The parts of a well-formed file, so that a test can change one of them."""
    at = 4 + 4 + 8 + 8

    def take(form: str) -> Any:
        nonlocal at
        (found,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return found

    def take_value(kind: int) -> Any:
        nonlocal at
        if kind == ARRAY:
            inner, count = take("I"), take("Q")
            return inner, [take_value(inner) for _ in range(count)]
        if kind != STRING:
            return take(FORMS[kind])
        length = take("Q")
        at += length
        return data[at - length : at].decode()

    tensors, keys = struct.unpack_from("<QQ", data, 8)
    found = Gguf()
    for _ in range(keys):
        key, kind = take_value(STRING), take("I")
        found.keys[key] = (kind, take_value(kind))
    rows = []
    for _ in range(tensors):
        name = take_value(STRING)
        dims = [take("Q") for _ in range(take("I"))]
        rows.append((name, dims, take("I"), take("Q")))
    whole = data[padded(at) :]
    ends = [*(offset for *_, offset in rows[1:]), len(whole)]
    found.tensors = [
        Tensor(name, dims, kind, whole[offset:end])
        for (name, dims, kind, offset), end in zip(rows, ends, strict=True)
    ]
    return found


def f32(name: str, *dims: int, seed: int = 0) -> Tensor:
    """A tensor in F32 whose values depend on the seed."""
    count = 1
    for size in dims:
        count *= size
    values = [((7 * i + seed) % 23) / 23 - 0.5 for i in range(count)]
    return Tensor(name, dims, 0, struct.pack(f"<{count}f", *values))


def tiny(**more: Any) -> Gguf:
    """A file that is whole and well-formed, though no model runs from it."""
    keys = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny Fox",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "é", "<|end|>"],
        "tokenizer.ggml.token_type": (ARRAY, (I32, [1, 1, 1, 3])),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.add_bos_token": False,
    }
    tensors = [f32("token_embd.weight", 32, 4), f32("blk.0.attn_norm.weight", 32)]
    tensors.append(Tensor("blk.0.ffn_up.weight", (32, 2), 8, bytes(range(68))))  # Q8_0
    return Gguf({**keys, **{key.replace("__", "."): held for key, held in more.items()}}, tensors)


def write_split(
    folder: Path, stem: str, *, parts: int = 3, whole: Gguf | None = None
) -> list[Path]:
    """Writes a model as parts, as `llama-gguf-split` does; returns their paths."""
    whole = whole or tiny()
    paths = []
    for number in range(parts):
        split = {
            "split.no": (U16, number),
            "split.count": (U16, parts),
            "split.tensors.count": (I32, len(whole.tensors)),
        }
        keys = {**whole.keys, **split} if number == 0 else split
        part = Gguf(keys, whole.tensors[number::parts])
        paths.append(part.write(folder / f"{stem}-{number + 1:05}-of-{parts:05}.gguf"))
    return paths
