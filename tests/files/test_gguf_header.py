"""The header of a GGUF file is read as it is, or refused with the cause; never trusted."""

import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import _type_traits

from d3cli.base.errors import ModelError
from d3cli.files import gguf_header
from d3cli.files.first_bytes import is_gguf
from d3cli.files.gguf import read_gguf
from d3cli.files.gguf_header import read_header
from d3cli.files.gguf_types import NOT_READABLE, READABLE, RETIRED
from tests.gguf_bytes import ARRAY, I32, STRING, U32, U64, Gguf, Tensor, f32, key_bytes, text, tiny


class TestWhatIsRead:
    def test_metadata_and_tensors(self, tmp_path: Path) -> None:
        path = tiny().write(tmp_path / "fox.gguf")
        header = read_header(path)
        assert header.metadata["general.name"] == "Tiny Fox"
        assert header.metadata["llama.rope.freq_base"] == 10000.0
        assert header.metadata["tokenizer.ggml.add_bos_token"] is False
        assert header.metadata["tokenizer.ggml.tokens"] == ("a", "b", "é", "<|end|>")
        assert header.metadata["tokenizer.ggml.token_type"] == (1, 1, 1, 3)
        assert header.metadata.length("tokenizer.ggml.tokens") == 4
        assert header.metadata.length("general.name") is None
        embedding, norm, up = header.tensors
        assert (embedding.name, embedding.shape) == ("token_embd.weight", (4, 32))
        assert (norm.shape, norm.nbytes) == ((32,), 128)
        assert (up.type.name, up.shape, up.nbytes) == ("Q8_0", (2, 32), 68)
        assert path.read_bytes()[up.offset :][: up.nbytes] == bytes(range(68))

    def test_the_same_as_the_package_reads(self, tmp_path: Path) -> None:
        path = tiny().write(tmp_path / "fox.gguf")
        theirs, ours = gguf.GGUFReader(path), read_header(path)
        keys = {key for key in theirs.fields if not key.startswith("GGUF.")}
        assert keys == set(ours.metadata)
        for key in keys:
            value = ours.metadata[key]
            expected = theirs.fields[key].contents()
            assert (list(value) if isinstance(value, tuple) else value) == expected
        assert [
            (t.name, t.tensor_type, t.data_offset, t.n_bytes, tuple(reversed(t.shape.tolist())))
            for t in theirs.tensors
        ] == [(t.name, t.type.number, t.offset, t.nbytes, t.shape) for t in ours.tensors]

    @pytest.mark.parametrize("version", [2, 3])
    def test_versions(self, tmp_path: Path, version: int) -> None:
        file = tiny()
        file.version = version
        assert len(read_header(file.write(tmp_path / "x")).tensors) == 3

    def test_another_alignment(self, tmp_path: Path) -> None:
        file = tiny(general__alignment=64)
        file.tensors = [f32("token_embd.weight", 16)]
        data = file.header()
        data += bytes(-len(data) % 64) + file.tensors[0].data
        (tmp_path / "x").write_bytes(data)
        [tensor] = read_header(tmp_path / "x").tensors
        assert data[tensor.offset :] == file.tensors[0].data

    def test_a_large_vocabulary_takes_no_time(self, tmp_path: Path) -> None:
        """It is compared with reading it in Python, which takes ten times as long at least."""
        file = tiny()
        file.keys["tokenizer.ggml.tokens"] = [f"token {n}" for n in range(100_000)]
        path = file.write(tmp_path / "x")
        began = time.process_time()
        read_header(path)
        ours = time.process_time() - began
        began = time.process_time()
        gguf.GGUFReader(path)
        assert ours < (time.process_time() - began) / 3


class TestTypes:
    def test_the_table_is_that_of_the_package(self) -> None:
        for kind in READABLE.values():
            theirs = GGMLQuantizationType(kind.number)
            assert theirs.name == kind.name
            assert GGML_QUANT_SIZES[theirs] == (kind.block_values, kind.block_bytes)
        unpacked = {kind.value for kind in _type_traits} | {0, 1}  # F32 and F16 need no class
        assert set(READABLE) == unpacked
        assert set(NOT_READABLE) == {kind.value for kind in GGMLQuantizationType} - unpacked
        assert {kind: GGMLQuantizationType(kind).name for kind in NOT_READABLE} == NOT_READABLE
        assert not RETIRED.keys() & {kind.value for kind in GGMLQuantizationType}

    @pytest.mark.parametrize(
        ("number", "message"),
        [
            (4, "as Q4_2, a type that llama.cpp has removed"),
            (33, "as Q4_0_8_8, a type that llama.cpp has removed"),
            (24, "as I8, which d3 cannot unpack"),
            (15, "as Q8_K, which d3 cannot unpack"),
            (99, "with type 99, which d3 does not know"),
        ],
    )
    def test_other_types_are_named(self, tmp_path: Path, number: int, message: str) -> None:
        file = tiny()
        file.tensors.append(Tensor("blk.0.x", (256,), number, bytes(1024)))
        with pytest.raises(ModelError, match=message) as got:
            read_header(file.write(tmp_path / "x"))
        assert '"blk.0.x"' in got.value.message
        assert got.value.hint


def with_key(*pieces: bytes) -> Gguf:
    file = tiny()
    file.more_keys = list(pieces)
    return file


def with_tensor(*tensors: Tensor) -> Gguf:
    file = tiny()
    file.tensors += tensors
    return file


def claiming(tensors: int, keys: int) -> Gguf:
    return Gguf(tiny().keys, tiny().tensors, counts=(tensors, keys))


def key_with_a_list(kind: int, count: int, data: bytes = b"") -> bytes:
    return text("x.list") + struct.pack("<IIQ", ARRAY, kind, count) + data


@contextmanager
def allocating(at_most: int) -> Iterator[None]:
    """Checks that Python allocates nothing of the sizes that a header claims."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < at_most
    finally:
        tracemalloc.stop()


HUGE = 2**64 - 1
BROKEN = {
    "no version": (b"GGUF", "ends within its header"),
    "no counts": (b"GGUF\3\0\0\0", "ends within its header"),
    "version 1": (Gguf(version=1), "the old version 1"),
    "version 0": (Gguf(version=0), "version 0"),
    "version 4": (Gguf(version=4), "version 4"),
    "big-endian": (Gguf(version=3 << 24), "big-endian"),
    "too many keys": (claiming(3, HUGE), "claims to have 18,446,744,073,709,551,615 keys"),
    "too many tensors": (claiming(HUGE, 1), "claims to have 18,446,744,073,709,551,615 tensors"),
    "more keys than bytes": (claiming(3, 9_999), "ends within its header"),
    "more tensors than bytes": (claiming(199_999, 12), "ends within its header"),
    "a long key": (with_key(key_bytes("k" * 300, U32, 1)), "a key claims to have 300 bytes"),
    "an endless key": (with_key(struct.pack("<Q", HUGE)), "a key claims to have"),
    "an empty key": (with_key(key_bytes("", U32, 1)), "a key is empty"),
    "a key twice": (with_key(key_bytes("general.name", U32, 1)), 'key "general.name" twice'),
    "a key of bytes": (with_key(key_bytes(b"\xff\xfe", U32, 1)), "a key is not UTF-8"),
    "a hostile key": (
        with_key(*(2 * [key_bytes("\x1b[2J\u202e", U32, 1)])),
        'the key "\u241b[2J\\u202e" twice',
    ),
    "an unknown type": (with_key(text("x") + struct.pack("<I", 77)), "unknown type 77"),
    "an endless text": (
        with_key(text("x.y") + struct.pack("<IQ", STRING, HUGE)),
        '"x.y" claims to have',
    ),
    "text of bytes": (with_key(key_bytes("x", STRING, b"\xc3(")), "is not UTF-8"),
    "a list of lists": (with_key(key_with_a_list(ARRAY, 1)), "a list of lists"),
    "a list of nothing": (with_key(key_with_a_list(77, 1)), "list of the unknown type 77"),
    "an endless list": (with_key(key_with_a_list(U64, HUGE)), "ends within its header"),
    "an endless list of texts": (
        with_key(key_with_a_list(STRING, HUGE)),
        "claims to have 18,446,744,073,709,551,615 strings",
    ),
    "more texts than bytes": (with_key(key_with_a_list(STRING, 3_000_000)), "ends within"),
    "an endless text in a list": (
        with_key(key_with_a_list(STRING, 1, struct.pack("<Q", HUGE))),
        "a string in \"x.list\" claims",
    ),
    "a list that ends in a text": (
        with_key(key_with_a_list(STRING, 2, text("a") + struct.pack("<Q", 60_000))),
        "ends within its header",
    ),
    "alignment 0": (tiny(general__alignment=0), "its alignment is 0"),
    "alignment 24": (tiny(general__alignment=24), "its alignment is 24"),
    "alignment 2^31": (tiny(general__alignment=2**31), "its alignment is 2147483648"),
    "alignment in words": (tiny(general__alignment="wide"), "its alignment is wide"),
    "a tensor twice": (with_tensor(f32("token_embd.weight", 32)), "twice"),
    "a tensor without a name": (with_tensor(f32("", 32)), "the name of a tensor is empty"),
    "a long name": (with_tensor(f32("n" * 300, 32)), "name of a tensor claims to have 300"),
    "a name of bytes": (with_tensor(Tensor(b"\xff", (32,))), "name of a tensor is not UTF-8"),
    "no dimensions": (with_tensor(Tensor("x", ())), "has 0 dimensions"),
    "five dimensions": (with_tensor(Tensor("x", (1, 1, 1, 1, 1))), "has 5 dimensions"),
    "an empty tensor": (with_tensor(Tensor("x", (32, 0))), "is empty"),
    "a product beyond 64 bits": (with_tensor(Tensor("x", (2**63, 2**63))), "cut short"),
    "rows that are no blocks": (with_tensor(Tensor("x", (33,), 8)), "not a multiple of the block"),
    "not aligned": (with_tensor(Tensor("x", (8,), offset=4100)), "is not aligned"),
    "overlapping": (with_tensor(Tensor("x", (8,), offset=32)), "overlap"),
    "far away": (with_tensor(Tensor("x", (8,), offset=2**63)), "is cut short"),
}  # fmt: skip


class TestBrokenHeaders:
    @pytest.mark.parametrize("name", BROKEN)
    def test_each_has_one_clear_line(self, tmp_path: Path, name: str) -> None:
        broken, message = BROKEN[name]
        path = tmp_path / "x.gguf"
        path.write_bytes(broken.encode() if isinstance(broken, Gguf) else broken)
        with allocating(at_most=1 << 20), pytest.raises(ModelError) as got:
            read_gguf(path)
        assert message in got.value.message
        assert str(path) in got.value.message
        assert got.value.hint
        assert got.value.message.isprintable()
        assert len(got.value.message) < 500

    def test_a_file_that_is_cut_anywhere(self, tmp_path: Path) -> None:
        whole = tiny().encode()
        path = tmp_path / "x.gguf"
        for length in [*range(4, 700, 7), len(whole) - 64, len(whole) - 33]:
            path.write_bytes(whole[:length])
            with pytest.raises(ModelError, match="cut short"):
                read_gguf(path)

    def test_a_list_that_is_not_text_is_refused_when_it_is_read(self, tmp_path: Path) -> None:
        path = with_key(key_bytes("x.list", ARRAY, (STRING, [b"\xff"]))).write(tmp_path / "x")
        metadata = read_header(path).metadata
        with pytest.raises(ModelError, match=r"x\.list\" is not UTF-8"):
            metadata["x.list"]

    def test_a_header_beyond_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gguf_header, "LARGEST_HEADER", 1 << 20)
        file = with_key(*(key_bytes(f"x{n}", STRING, "y" * 500_000) for n in range(3)))
        with pytest.raises(ModelError, match="has more than 1 MiB"):
            read_header(file.write(tmp_path / "x"))

    def test_numbers_that_are_no_counts(self, tmp_path: Path) -> None:
        """Values of the model itself are read as they stand; loading judges them."""
        file = with_key(key_bytes("x.count", I32, -1), key_bytes("x.list", ARRAY, (I32, [-1])))
        metadata = read_header(file.write(tmp_path / "x")).metadata
        assert (metadata["x.count"], metadata["x.list"]) == (-1, (-1,))


class TestMagic:
    def test_only_the_first_bytes_count(self, tmp_path: Path) -> None:
        for name, data, expected in (
            ("model.gguf", b"GGUF", True),
            ("sha256-abc", b"GGUF....", True),
            ("short", b"GGU", False),
            ("other.gguf", b"<!doctype html>", False),
        ):
            (tmp_path / name).write_bytes(data)
            assert is_gguf(tmp_path / name) is expected
        assert not is_gguf(tmp_path)
        assert not is_gguf(tmp_path / "none")
        assert not is_gguf(Path("/dev/null"))
        assert not is_gguf(Path("\0"))
