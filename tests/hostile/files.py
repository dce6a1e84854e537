"""Files that are not files, or lie elsewhere."""

import json
import os
from pathlib import Path

from tests.hostile.registry import (
    harmless,
    refused,
    replace_by_link,
    shard,
    weights,
)


@refused
def a_config_that_is_a_pipe(model: Path, outside: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")


@refused
def generation_settings_that_are_a_pipe(model: Path, outside: Path) -> None:
    (model / "generation_config.json").unlink()
    os.mkfifo(model / "generation_config.json")


@refused
def a_config_without_an_end(model: Path, outside: Path) -> None:
    replace_by_link(model / "config.json", "/dev/zero")


@refused
def a_link_to_a_secret(model: Path, outside: Path) -> None:
    replace_by_link(model / "chat_template.jinja", outside / "secret.json")


@refused
def a_relative_link_out(model: Path, outside: Path) -> None:
    replace_by_link(model / "tokenizer.json", f"../{outside.name}/secret.json")


@refused
def a_link_to_itself(model: Path, outside: Path) -> None:
    replace_by_link(model / "generation_config.json", "generation_config.json")


@refused
def weights_that_are_a_link_out(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    replace_by_link(weights(model), outside / "other.safetensors")


@refused
def a_shard_above(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    shard(model, f"../{outside.name}/other.safetensors")
    weights(model).unlink()


@refused
def a_shard_by_an_absolute_path(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    shard(model, str(outside / "other.safetensors"))


@refused
def a_shard_that_is_a_link_out(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    (model / "part.safetensors").symlink_to(outside / "other.safetensors")
    shard(model, "part.safetensors")


@refused
def a_shard_of_another_kind(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    (model / "part.bin").symlink_to(outside / "other.safetensors")
    shard(model, "part.bin")


@refused
def an_index_of_millions_of_lists(model: Path, outside: Path) -> None:
    index = {"metadata": {"x": [[]] * 5_000_000}, "weight_map": {}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@harmless
def files_that_nobody_reads(model: Path, outside: Path) -> None:
    (model / "notes.txt").symlink_to(outside / "none.txt")
    (model / "logs.json").mkdir()


@refused
def a_shard_that_is_the_directory(model: Path, outside: Path) -> None:
    shard(model, ".")


@refused
def a_shard_with_a_nul(model: Path, outside: Path) -> None:
    shard(model, "part\0.safetensors")


@refused
def a_shard_that_is_a_number(model: Path, outside: Path) -> None:
    shard(model, {"a": 1})


@refused
def an_index_of_a_list(model: Path, outside: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": []}')
