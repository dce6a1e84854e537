"""Random GGUF headers: read as they stand or refused by d3's own errors, without large memory."""

import contextlib
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d3cli.base.errors import ModelError
from d3cli.files.fingerprint import gguf_fingerprint
from d3cli.files.gguf import GgufModel, read_gguf
from tests.gguf_bytes import ARRAY, FORMS, STRING, Gguf, Tensor, key_bytes, tiny

WHOLE = tiny().encode()
LENGTHS = [0, 1, 7, 8, 31, 32, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
MOST = 1 << 20  # bytes that Python may allocate: the file has two thousand

scalars = st.one_of(
    *(
        st.tuples(st.just(kind), st.integers(0, 2 ** (8 * struct.calcsize(form)) - 1))
        for kind, form in FORMS.items()
        if form in "BHIQ"
    ),
    st.tuples(st.just(5), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(6), st.floats(width=32)),
    st.tuples(st.just(7), st.booleans()),
)
texts = st.tuples(st.just(STRING), st.text(max_size=8) | st.binary(max_size=8))
lists = st.one_of(
    st.lists(st.text(max_size=4) | st.binary(max_size=4), max_size=4).map(
        lambda items: (ARRAY, (STRING, items))
    ),
    st.lists(st.integers(-9, 9), max_size=4).map(lambda items: (ARRAY, (5, items))),
)
KEYS = [*tiny().keys, "general.alignment", "split.no", "split.count", "split.tensors.count"]
keys = st.dictionaries(
    st.sampled_from(KEYS) | st.text(max_size=8), scalars | texts | lists, max_size=6
)
tensors = st.lists(
    st.builds(
        Tensor,
        st.sampled_from(["token_embd.weight", "a", "b", ""]) | st.binary(max_size=4),
        st.lists(st.sampled_from(LENGTHS), max_size=5),
        st.integers(0, 45),
        st.binary(max_size=64),
        st.none() | st.sampled_from([*LENGTHS, 64, 128]),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf") / "x.gguf"


def attempt(path: Path, data: bytes) -> GgufModel | None:
    """The model, all of it read; None if it is refused. Any other exception is a finding."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelError):
            model = read_gguf(path)
            dict(model.metadata)
            gguf_fingerprint(model)
            for tensor in model.tensors.values():
                assert 0 < tensor.offset <= tensor.offset + tensor.nbytes <= len(data)
            return model
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST


@given(file=st.builds(Gguf, keys=keys, tensors=tensors))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_structure(place: Path, file: Gguf) -> None:
    attempt(place, file.encode())


@given(keys=keys, more=tensors)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_a_whole_file_with_other_keys_and_tensors(place: Path, keys: dict, more: list) -> None:
    file = tiny()
    file.keys |= keys
    file.tensors += more
    attempt(place, file.encode())


@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 8), st.sampled_from(LENGTHS) | st.integers(0, 255)),
        min_size=1,
        max_size=3,
    ),
    length=st.none() | st.integers(0, len(WHOLE)),
)
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_numbers_anywhere_in_a_whole_file(
    place: Path, changes: list[tuple[int, int]], length: int | None
) -> None:
    data = bytearray(WHOLE)
    for at, number in changes:
        width = 1 if number < 256 else 8
        data[at : at + width] = number.to_bytes(width, "little")
    attempt(place, bytes(data[:length]))


def test_single_bytes_of_the_header_may_be_wrong(place: Path) -> None:
    for at in range(4, len(tiny().header())):
        if at % 5 < 2:  # the lengths of names move this pattern over all kinds of fields
            attempt(place, WHOLE[:at] + bytes([(0, 255)[at % 2]]) + WHOLE[at + 1 :])


def test_the_whole_file_is_read(place: Path) -> None:
    assert attempt(place, WHOLE) is not None
    more = tiny()
    more.more_keys = [key_bytes("x.flags", ARRAY, (7, [True, False]))]
    model = attempt(place, more.encode())
    assert model is not None
    assert model.metadata["x.flags"] == (True, False)
