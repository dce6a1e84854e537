"""Damaged, oversized and pickled weights."""

import json
import pickle
from pathlib import Path

from tests.hostile.registry import (
    Bomb,
    change_tensor,
    first_name,
    header,
    in_holes,
    refused,
    weights,
    write,
)


@refused
def only_pickled_weights(model: Path, outside: Path) -> None:
    weights(model).unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(outside)))


@refused
def pickled_weights_under_another_name(model: Path, outside: Path) -> None:
    weights(model).write_bytes(pickle.dumps(Bomb(outside)))


@refused
def a_header_beyond_the_file(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    raw = json.dumps(head).encode()
    write(weights(model), raw, data, length=len(raw) + len(data) + 1000)


@refused
def a_header_of_all_memory(model: Path, outside: Path) -> None:
    write(weights(model), b"{}", b"", length=(1 << 63) - 1)


@refused
def a_header_of_a_million_tensors(model: Path, outside: Path) -> None:
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    head = {f"model.layers.0.x{n}": nothing for n in range(900_000)}
    write(weights(model), json.dumps(head).encode(), b"")


@refused
def a_header_that_is_not_json(model: Path, outside: Path) -> None:
    write(weights(model), b"not json", b"")


@refused
def a_header_nested_beyond_the_stack(model: Path, outside: Path) -> None:
    write(weights(model), b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"")


@refused
def an_empty_file_of_weights(model: Path, outside: Path) -> None:
    weights(model).write_bytes(b"")


@refused
def weights_cut_short(model: Path, outside: Path) -> None:
    raw = weights(model).read_bytes()
    weights(model).write_bytes(raw[: len(raw) // 2])


@refused
def weights_with_more_behind_them(model: Path, outside: Path) -> None:
    with weights(model).open("ab") as file:
        file.write(b"more" * 100)


@refused
def tensors_that_overlap(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    names = [name for name in head if name != "__metadata__"]
    by_shape: dict[str, str] = {}
    for name in names:
        shape = str(head[name]["shape"])
        if shape in by_shape:
            head[name]["data_offsets"] = head[by_shape[shape]]["data_offsets"]
            break
        by_shape[shape] = name
    write(weights(model), json.dumps(head).encode(), data)


@refused
def a_tensor_declared_twice(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    name = first_name(head)
    raw = json.dumps(head)[:-1] + f", {json.dumps(name)}: {json.dumps(head[name])}}}"
    write(weights(model), raw.encode(), data)


@refused
def a_tensor_with_a_huge_shape(model: Path, outside: Path) -> None:
    change_tensor(model, shape=[1 << 40, 1 << 20])


@refused
def a_shape_that_overflows(model: Path, outside: Path) -> None:
    change_tensor(model, shape=[1 << 62, 1 << 62, 4])


@refused
def a_tensor_that_ends_before_it_begins(model: Path, outside: Path) -> None:
    change_tensor(model, data_offsets=[1000, 10])


@refused
def a_tensor_outside_the_file(model: Path, outside: Path) -> None:
    change_tensor(model, data_offsets=[1 << 50, (1 << 50) + 100])


@refused
def a_dtype_that_does_not_exist(model: Path, outside: Path) -> None:
    change_tensor(model, dtype="PICKLE")


@refused
def a_tensor_missing(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    name = next(n for n in head if n.endswith("up_proj.weight"))
    head["model.layers.0.mlp.renamed.weight"] = head.pop(name)
    write(weights(model), json.dumps(head).encode(), data)


@refused
def one_tensor_in_two_shards(model: Path, outside: Path) -> None:
    (model / "a.safetensors").write_bytes(weights(model).read_bytes())
    (model / "b.safetensors").write_bytes(weights(model).read_bytes())
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@refused
def weights_of_a_terabyte_of_holes(model: Path, outside: Path) -> None:
    in_holes(model, 90_000_000)
