"""GGUF files whose header is damaged or lies: about its counts, lengths, types, tensors."""

import struct

from tests.gguf_bytes import ARRAY, F32, I32, STRING, U32, U64, Gguf, Tensor, key_bytes, text
from tests.hostile.gguf_registry import REFUSED_GGUF, in_bytes, in_parts, keys, tensor

AT_VERSION, AT_TENSOR_COUNT, AT_KEY_COUNT = 4, 8, 16
TOKENS, EMBEDDINGS = "tokenizer.ggml.tokens", "token_embd.weight"
U8, MOST = 0, (1 << 64) - 1


def replaced(at: int, new: bytes):
    return in_bytes(lambda data: data[:at] + new + data[at + len(new) :])


def after(data: bytes, name: str) -> int:
    """Where a key's type, or a tensor's number of dimensions, stands."""
    return data.index(text(name)) + len(text(name))


def put(name: str, beyond: int, new: bytes):
    """Other bytes so far beyond the name of a key or a tensor."""
    return in_bytes(
        lambda data: (
            data[: after(data, name) + beyond] + new + data[after(data, name) + beyond + len(new) :]
        )
    )


def cut(where):
    """The file up to a place that a function of its bytes tells."""
    return in_bytes(lambda data: data[: where(data)])


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def u64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def more(*encoded: bytes):
    """More keys, as they stand in a file."""
    return in_parts(lambda parts: parts.more_keys.extend(encoded))


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    """A key whose value is any bytes."""
    return text(name) + u32(kind) + value


REFUSED_GGUF["header"] |= {
    "an_empty_file": cut(lambda data: 0),
    "only_the_magic": cut(lambda data: 4),
    "cut_within_the_counts": cut(lambda data: 20),
    "cut_within_the_name_of_a_key": cut(lambda data: data.index(text("llama.block_count")) + 10),
    "cut_within_a_value": cut(lambda data: after(data, "llama.block_count") + 6),
    "cut_within_the_vocabulary": cut(lambda data: after(data, TOKENS) + 100),
    "cut_within_the_table_of_tensors": cut(lambda data: after(data, EMBEDDINGS) + 10),
    "cut_before_the_weights": cut(lambda data: data.index(text("output_norm.weight")) + 60),
    "weights_that_are_cut": cut(lambda data: -4096),
    "the_last_byte_is_missing": cut(lambda data: -1),
}

REFUSED_GGUF["header"] |= {
    "version_zero": replaced(AT_VERSION, u32(0)),
    "version_one": replaced(AT_VERSION, u32(1)),
    "a_version_of_the_far_future": replaced(AT_VERSION, u32(0x7FFFFFFF)),
    "big_endian": replaced(AT_VERSION, struct.pack(">I", 3)),
    "more_tensors_than_bytes": replaced(AT_TENSOR_COUNT, u64(1 << 60)),
    "all_tensors_that_64_bits_can_count": replaced(AT_TENSOR_COUNT, u64(MOST)),
    "a_few_tensors_too_many": replaced(AT_TENSOR_COUNT, u64(10_000)),
    "more_keys_than_bytes": replaced(AT_KEY_COUNT, u64(1 << 62)),
    "a_negative_number_of_keys": replaced(AT_KEY_COUNT, u64(1 << 63)),
    "one_key_too_many": in_parts(lambda p: setattr(p, "counts", (len(p.tensors), len(p.keys) + 1))),
    "a_vocabulary_of_a_trillion_tokens": put(TOKENS, 8, u64(1 << 40)),
    "a_name_of_an_exabyte": in_bytes(
        lambda data: data.replace(text(EMBEDDINGS), u64(1 << 60) + EMBEDDINGS.encode())
    ),
    "a_key_as_long_as_64_bits_can_say": more(u64(MOST)),
    "a_key_without_a_name": more(key("", U32, u32(1))),
    "a_key_that_is_not_text": more(key(b"\xff\xfe\xc0", U32, u32(1))),
    "a_key_of_a_kilobyte": more(key("k" * 1000, U32, u32(1))),
    "a_value_of_an_unknown_type": more(key("x", 99, u64(0, 0))),
    "a_string_of_half_of_64_bits": more(key("x", STRING, u64(1 << 63))),
    "a_string_whose_end_overflows": more(key("x", STRING, u64(MOST - 7) + b"x")),
    "a_string_of_17_megabytes": more(key("x", STRING, text(b"x" * (17 << 20)))),
    "a_string_that_is_not_text": keys(general__architecture=b"\xff\xfe\xc0"),
    "bytes_by_the_exabyte": more(key("x", ARRAY, u32(U8) + u64(1 << 63))),
    "numbers_whose_size_overflows": more(key("x", ARRAY, u32(U64) + u64(1 << 61))),
    "strings_as_many_as_64_bits_can_count": more(key("x", ARRAY, u32(STRING) + u64(MOST))),
    "a_string_in_a_list_that_overflows": more(
        key("x", ARRAY, u32(STRING) + u64(3) + text("a") + u64(MOST) + text("c"))
    ),
    "a_list_of_an_unknown_type": more(key("x", ARRAY, u32(13) + u64(1) + u64(0))),
    "a_list_of_lists": more(key_bytes("x", ARRAY, (ARRAY, [(U32, [1]), (U32, [2])]))),
    "lists_nested_ten_thousand_deep": more(key("x", ARRAY, (u32(ARRAY) + u64(1)) * 10_000)),
    "the_same_key_twice": more(key_bytes("general.architecture", STRING, "gpt2")),
    "ten_thousand_keys_more": in_parts(
        lambda p: p.more_keys.extend(key_bytes(f"k{n}", U8, 1) for n in range(10_000))
    ),
    "a_name_that_commands_a_terminal": more(key("\x1b]0;OWNED\x07\u202e", 99, b"")),
}


@in_parts
def _a_header_beyond_the_limit(parts: Gguf) -> None:
    parts.more_keys.append(key("x", ARRAY, u32(U8) + u64(130 << 20) + bytes(130 << 20)))


@in_parts
def _the_same_tensor_twice(parts: Gguf) -> None:
    parts.tensors.append(parts.tensors[0])


@in_parts
def _tensors_in_one_place(parts: Gguf) -> None:
    first, second, *others = parts.tensors
    parts.tensors = [first, Tensor(second.name, second.dims, second.type, second.data, 0), *others]


@in_parts
def _a_tensor_within_another(parts: Gguf) -> None:
    last = parts.tensors[-1]
    parts.tensors[-1] = Tensor(last.name, last.dims, last.type, last.data, 64)


@in_parts
def _two_hundred_thousand_tensors(parts: Gguf) -> None:
    parts.tensors += [Tensor(f"x{n}", (1,), U8) for n in range(200_000)]


REFUSED_GGUF["header"] |= {
    "a_header_beyond_the_limit": _a_header_beyond_the_limit,
    "the_same_tensor_twice": _the_same_tensor_twice,
    "tensors_in_one_place": _tensors_in_one_place,
    "a_tensor_within_another": _a_tensor_within_another,
    "two_hundred_thousand_tensors": _two_hundred_thousand_tensors,
    "a_tensor_beyond_the_file": tensor(offset=1 << 40),
    "a_tensor_before_the_file": tensor(offset=(1 << 64) - 32),
    "a_tensor_out_of_step": tensor(offset=7),
    "a_tensor_of_an_unknown_type": tensor(type=999),
    "a_tensor_of_a_type_that_was_removed": tensor(type=31),
    "a_tensor_of_whole_numbers": tensor(type=26),
    "a_tensor_without_a_name": tensor(name=""),
    "a_tensor_whose_name_is_not_text": tensor(name=b"\xff\xfe"),
    "a_tensor_whose_name_commands_a_terminal": tensor(name="\x1b[2J\x07\u202e"),
    "a_tensor_that_overflows": tensor(dims=(1 << 33, 1 << 33)),
    "a_tensor_whose_size_wraps_to_nothing": tensor(dims=(1 << 32, 1 << 32)),
    "a_tensor_of_all_numbers": tensor(dims=(1 << 63, 1)),
    "a_tensor_of_nothing": tensor(dims=(256, 0)),
    "a_tensor_without_dimensions": tensor(dims=()),
    "a_tensor_of_five_dimensions": tensor(dims=(256, 2, 1, 1, 1)),
    "a_tensor_of_four_billion_dimensions": put(EMBEDDINGS, 0, u32(0xFFFFFFFF)),
    "rows_that_end_within_a_block": tensor(dims=(255, 512)),
    "a_tensor_of_another_shape": tensor(dims=(512, 256)),
    "a_tensor_with_one_more_axis": tensor(dims=(256, 256, 2)),
}

REFUSED_GGUF["header"] |= {
    "an_alignment_of_nothing": keys(general__alignment=0),
    "an_alignment_of_three": keys(general__alignment=3),
    "an_alignment_of_two_gigabytes": keys(general__alignment=1 << 31),
    "a_negative_alignment": keys(general__alignment=(I32, -32)),
    "an_alignment_that_is_no_number": keys(general__alignment=(F32, float("nan"))),
    "an_alignment_in_words": keys(general__alignment="thirty-two"),
    "an_alignment_that_is_not_the_file_s": keys(general__alignment=4096),
}
