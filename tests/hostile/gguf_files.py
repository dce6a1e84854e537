"""GGUF files that are no files, lie elsewhere, or are parts that do not belong together."""

import os
from pathlib import Path

from tests.gguf_bytes import I32, U16, U32, parse, tiny, write_split
from tests.hostile.gguf_registry import (
    HARMLESS_GGUF,
    NAME,
    REFUSED_GGUF,
    Change,
    refused,
)

TERABYTE = 1 << 40


@refused
def a_pipe(folder: Path, data: bytes, outside: Path) -> Path:
    os.mkfifo(folder / NAME)
    return folder / NAME


@refused
def a_file_without_an_end(folder: Path, data: bytes, outside: Path) -> Path:
    (folder / NAME).symlink_to("/dev/zero")
    return folder / NAME


@refused
def a_directory_by_the_name_of_a_file(folder: Path, data: bytes, outside: Path) -> Path:
    (folder / NAME).mkdir()
    return folder / NAME


@refused
def a_link_to_itself(folder: Path, data: bytes, outside: Path) -> Path:
    (folder / NAME).symlink_to(NAME)
    return folder / NAME


@refused
def a_terabyte_of_nothing(folder: Path, data: bytes, outside: Path) -> Path:
    (folder / NAME).write_bytes(b"GGUF")
    os.truncate(folder / NAME, TERABYTE)
    return folder / NAME


@refused
def embeddings_of_a_terabyte(folder: Path, data: bytes, outside: Path) -> Path:
    """The file is as long as it says; nearly all of it is a hole."""
    parts = parse(data)
    [at] = [i for i, one in enumerate(parts.tensors) if one.name == "token_embd.weight"]
    embeddings = parts.tensors.pop(at)
    last = type(embeddings)(embeddings.name, (256, TERABYTE >> 10), 0)
    parts.tensors.append(last)
    parts.write(folder / NAME)
    os.truncate(folder / NAME, (folder / NAME).stat().st_size + TERABYTE)
    return folder / NAME


def split(parts: int = 3) -> Change:
    return lambda folder, data, _: write_split(folder, "model", parts=parts, whole=parse(data))[0]


def split_keys(number: int, **changes: object) -> Change:
    """A split model, of which one part, counted from 0, says something else of itself."""

    def write(folder: Path, data: bytes, _: Path) -> Path:
        paths = write_split(folder, "model", whole=parse(data))
        part = parse(paths[number].read_bytes())
        for name, value in changes.items():
            part.keys["split." + name.replace("__", ".")] = value
        part.write(paths[number])
        return paths[0]

    return write


def replaced_part(how) -> Change:
    """A split model, in whose place of the second part stands something else."""

    def write(folder: Path, data: bytes, outside: Path) -> Path:
        first, second, _ = write_split(folder, "model", whole=parse(data))
        second.unlink()
        how(second, outside)
        return first

    return write


REFUSED_GGUF["files"] |= {
    "a_part_that_is_missing": replaced_part(lambda part, outside: None),
    "a_part_that_is_a_directory": replaced_part(lambda part, outside: part.mkdir()),
    "a_part_that_is_a_pipe": replaced_part(lambda part, outside: os.mkfifo(part)),
    "a_part_without_an_end": replaced_part(lambda part, outside: part.symlink_to("/dev/zero")),
    "a_part_that_is_the_first_one": replaced_part(
        lambda part, outside: part.symlink_to("model-00001-of-00003.gguf")
    ),
    "a_part_that_is_no_gguf": replaced_part(lambda part, outside: part.write_bytes(b"x" * 999)),
    "a_part_of_another_model": replaced_part(lambda part, outside: tiny().write(part) and None),
    "parts_by_the_billion": split_keys(0, count=(U32, 1 << 31)),
    "a_part_of_a_negative_number": split_keys(0, no=(I32, -1)),
    "two_parts_that_both_are_the_first": split_keys(1, no=(U16, 0)),
    "parts_that_are_of_different_wholes": split_keys(1, count=(U16, 2)),
    "parts_with_more_tensors_in_all": split_keys(0, tensors__count=(I32, 1 << 30)),
    "a_count_of_parts_in_words": split_keys(0, no="none", count=(U32, 3)),
}


@refused
def parts_that_hold_one_tensor_twice(folder: Path, data: bytes, outside: Path) -> Path:
    whole = parse(data)
    whole.tensors.append(whole.tensors[0])
    return write_split(folder, "model", parts=len(whole.tensors), whole=whole)[0]


@refused
def a_part_under_the_name_of_a_whole(folder: Path, data: bytes, outside: Path) -> Path:
    first, *_ = write_split(folder, "model", whole=parse(data))
    return first.rename(folder / NAME)


@refused
def a_name_that_leads_to_a_part_elsewhere(folder: Path, data: bytes, outside: Path) -> Path:
    """The parts of a link lie where it leads to, and one is missing there."""
    first, second, _ = write_split(folder, "model", whole=parse(data))
    second.unlink()
    (folder / NAME).symlink_to(first.name)
    return folder / NAME


@refused
def pickled_weights_by_another_name(folder: Path, data: bytes, outside: Path) -> Path:
    import pickle

    from tests.hostile.registry import Bomb

    (folder / NAME).write_bytes(pickle.dumps(Bomb(outside)))
    return folder / NAME


HARMLESS_GGUF |= {
    "a_terabyte_behind_the_weights": lambda folder, data, outside: (
        (folder / NAME).write_bytes(data),
        os.truncate(folder / NAME, TERABYTE),
        folder / NAME,
    )[-1],
    "parts_that_are_whole": split(),
}
