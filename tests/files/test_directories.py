"""Directories that were saved into twice, merged, or hold adapters: no old weights answer."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from d3cli.base.errors import ModelError
from d3cli.files.directory import choice_of_weights
from d3cli.files.fingerprint import fingerprint
from d3cli.files.names import find_on_disk
from d3cli.files.safetensors import describe_directory, missing_weights, weight_files
from d3cli.files.vet_files import files_read
from tests.conftest import BUILTIN_PATH, D3, check
from tests.copies import change_a_tensor, stranger

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    return stranger(tmp_path / "fox")


def shard(model: Path, parts: int = 2) -> list[str]:
    """Adds shards of the model's single file and their index; returns the shards' names."""
    tensors = load_file(model / SINGLE)
    names = [f"model-{n:05}-of-{parts:05}.safetensors" for n in range(1, parts + 1)]
    weight_map = {}
    for number, name in enumerate(names):
        own = sorted(tensors)[number::parts]
        save_file({key: tensors[key] for key in own}, model / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, name)
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


class TestSavedTwice:
    @pytest.mark.parametrize("left", [0, 1, 2], ids="{} of 3 shards are left".format)
    def test_one_file_comes_before_an_index_whose_shards_are_gone(
        self, fox: Path, left: int
    ) -> None:
        for name in shard(fox, 3)[left:]:
            (fox / name).unlink()
        assert weight_files(fox) == [SINGLE]
        assert not missing_weights(fox)
        assert find_on_disk(str(fox)) is not None
        assert fingerprint(fox) == fingerprint(BUILTIN_PATH)
        assert len(describe_directory("fox", fox).tensors) == len(load_file(fox / SINGLE))
        [note] = choice_of_weights(fox, from_hub=False)
        assert INDEX in note

    @pytest.mark.parametrize("order", ["shards first", "one file first"])
    def test_two_complete_models_are_refused_and_both_are_named(
        self, fox: Path, order: str
    ) -> None:
        names = shard(fox)
        change_a_tensor(fox, lambda tensor: tensor * 1.01)
        newer = SINGLE if order == "shards first" else names[0]
        for name in (SINGLE, *names):
            os.utime(fox / name, (1, 2 if name == newer else 1))
        with pytest.raises(ModelError, match=f"holds two models: {SINGLE}, and {names[0]}") as got:
            choice_of_weights(fox, from_hub=False)
        assert INDEX in got.value.message
        assert f"{newer} was written last" in got.value.hint

    def test_a_conversion_to_another_dtype_is_another_model(self, fox: Path) -> None:
        shard(fox)
        change_a_tensor(fox, lambda tensor: tensor.half())
        with pytest.raises(ModelError, match="two models"):
            choice_of_weights(fox, from_hub=False)

    def test_old_shards_that_were_cut_short_are_another_model(self, fox: Path) -> None:
        (fox / shard(fox)[1]).write_bytes(b"")
        with pytest.raises(ModelError, match="two models"):
            choice_of_weights(fox, from_hub=False)

    def test_the_same_weights_in_both_forms_are_one_model(self, fox: Path) -> None:
        shard(fox)
        assert choice_of_weights(fox, from_hub=False) == []
        assert weight_files(fox) == [SINGLE]

    def test_a_repository_of_the_hub_runs_as_in_transformers(self, fox: Path) -> None:
        shard(fox)
        change_a_tensor(fox, lambda tensor: tensor * 1.01)
        [note] = choice_of_weights(fox, from_hub=True)
        assert str(note).startswith(f"{SINGLE} runs, as in transformers")

    def test_an_index_may_list_the_one_file(self, fox: Path) -> None:
        names = dict.fromkeys(load_file(fox / SINGLE), SINGLE)
        (fox / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
        assert choice_of_weights(fox, from_hub=False) == []
        assert weight_files(fox) == [SINGLE]

    def test_every_file_that_is_compared_is_checked_first(self, fox: Path) -> None:
        names = shard(fox)
        assert {SINGLE, INDEX, *names} <= {path.name for path in files_read(fox)}

    def test_the_last_save_answers(self, fox: Path, d3: D3) -> None:
        names = shard(fox)
        command = ("generate", fox, "Hi.", "--max-tokens", "3")
        change_a_tensor(fox, lambda tensor: tensor * 1.01)
        check(d3(*command), 1, "holds two models")
        for name in names:
            (fox / name).unlink()
        result = d3(*command)
        assert result.code == 0, result.err
        assert f"{INDEX} names files that are not there" in result.err
