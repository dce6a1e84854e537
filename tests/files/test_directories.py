"""Directories that were saved into twice, merged, or hold adapters: no old weights answer."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from d3cli.base.errors import ModelError
from d3cli.files.directory import notes_on_directory
from d3cli.files.fingerprint import fingerprint
from d3cli.files.json_files import unreadable
from d3cli.files.names import find_on_disk
from d3cli.files.safetensors import describe_directory, missing_weights, weight_files
from d3cli.files.vet_files import files_read
from d3cli.model.check import check_config
from d3cli.model.load import load_model
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
        [note] = notes_on_directory(fox, from_hub=False)
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
            notes_on_directory(fox, from_hub=False)
        assert INDEX in got.value.message
        assert f"{newer} was written last" in got.value.hint

    def test_a_conversion_to_another_dtype_is_another_model(self, fox: Path) -> None:
        shard(fox)
        change_a_tensor(fox, lambda tensor: tensor.half())
        with pytest.raises(ModelError, match="two models"):
            notes_on_directory(fox, from_hub=False)

    def test_old_shards_that_were_cut_short_are_another_model(self, fox: Path) -> None:
        (fox / shard(fox)[1]).write_bytes(b"")
        with pytest.raises(ModelError, match="two models"):
            notes_on_directory(fox, from_hub=False)

    def test_the_same_weights_in_both_forms_are_one_model(self, fox: Path) -> None:
        shard(fox)
        assert notes_on_directory(fox, from_hub=False) == []
        assert weight_files(fox) == [SINGLE]

    def test_a_repository_of_the_hub_runs_as_in_transformers(self, fox: Path) -> None:
        shard(fox)
        change_a_tensor(fox, lambda tensor: tensor * 1.01)
        [note] = notes_on_directory(fox, from_hub=True)
        assert str(note).startswith(f"{SINGLE} runs, as in transformers")

    def test_an_index_may_list_the_one_file(self, fox: Path) -> None:
        names = dict.fromkeys(load_file(fox / SINGLE), SINGLE)
        (fox / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
        assert notes_on_directory(fox, from_hub=False) == []
        assert weight_files(fox) == [SINGLE]

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
    def test_pickled_weights_of_a_later_save_are_a_note(self, fox: Path, name: str) -> None:
        (fox / name).write_bytes(b"")
        os.utime(fox / name, (1, 1))
        assert notes_on_directory(fox, from_hub=False) == []
        os.utime(fox / SINGLE, (0, 0))
        [note] = notes_on_directory(fox, from_hub=False)
        assert str(note).startswith(f"{name} was written after {SINGLE}, which runs")
        assert notes_on_directory(fox, from_hub=True) == []

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


ADAPTERS = ["adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"]


class TestAdapters:
    @pytest.mark.parametrize("name", [*ADAPTERS, None])
    @pytest.mark.parametrize("with_config", [True, False])
    def test_an_adapter_alone_is_refused_by_name(
        self, fox: Path, name: str | None, with_config: bool
    ) -> None:
        (fox / SINGLE).unlink()
        if not with_config:
            (fox / "config.json").unlink()
        (fox / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/vixen"}')
        if name:
            (fox / name).write_bytes(b"")
        with pytest.raises(ModelError, match=r"holds an adapter") as got:
            find_on_disk(str(fox))
        assert (name or "adapter_config.json") in got.value.message
        assert "base model, someone/vixen, with the package peft" in got.value.hint

    @pytest.mark.parametrize("name", [*ADAPTERS, "adapter_config.json"])
    def test_an_adapter_beside_full_weights_is_one_note(self, fox: Path, name: str) -> None:
        (fox / name).write_bytes(b"")
        assert notes_on_directory(fox, from_hub=False) == [
            f"{SINGLE} runs without the adapter that lies beside ({name})"
        ]
        shard(fox)
        (fox / SINGLE).unlink()
        [note] = notes_on_directory(fox, from_hub=True)
        assert str(note).startswith(f"the shards of {INDEX} run without the adapter")

    def test_the_note_is_shown(self, fox: Path, d3: D3) -> None:
        (fox / "adapter_model.safetensors").write_bytes(b"")
        result = d3("generate", fox, "Hi.", "--max-tokens", "3")
        assert result.code == 0, result.err
        assert result.err.count("runs without the adapter") == 1

    @pytest.mark.parametrize("part", ["up_proj.lora_A.default", "up_proj.base_layer"])
    def test_weights_saved_with_an_adapter_attached(self, fox: Path, part: str) -> None:
        tensors = load_file(fox / SINGLE)
        for name in [name for name in tensors if "up_proj" in name]:
            tensors[name.replace("up_proj", part)] = tensors[name].clone()
        save_file(tensors, fox / SINGLE)
        with pytest.raises(ModelError, match=r"an adapter that is not merged: .*up_proj"):
            check_config(describe_directory("fox", fox))


class TestOtherDirectories:
    def test_weights_in_another_form_are_named(self, fox: Path) -> None:
        (fox / SINGLE).rename(fox / "consolidated.safetensors")
        with pytest.raises(ModelError, match=r"holds consolidated\.safetensors, which is not in"):
            find_on_disk(str(fox))

    def test_shards_without_an_index(self, fox: Path) -> None:
        shard(fox)
        (fox / SINGLE).unlink()
        (fox / INDEX).unlink()
        with pytest.raises(ModelError, match=f"lacks {INDEX}, which says what model-00001-of-0000"):
            find_on_disk(str(fox))

    def test_a_link_to_a_file_that_is_gone(self, fox: Path) -> None:
        (fox / SINGLE).unlink()
        (fox / SINGLE).symlink_to(fox / "gone")
        with pytest.raises(ModelError, match="is a broken link"):
            find_on_disk(str(fox))

    def test_a_directory_above_the_model(self, fox: Path) -> None:
        with pytest.raises(ModelError, match=r"no config\.json") as got:
            find_on_disk(str(fox.parent))
        assert got.value.hint == f"{fox} has one: give that directory"

    def test_a_repository_of_the_cache(self, tmp_path: Path) -> None:
        (tmp_path / "models--someone--fox" / "snapshots" / "abc").mkdir(parents=True)
        with pytest.raises(ModelError, match=r"no config\.json") as got:
            find_on_disk(str(tmp_path / "models--someone--fox"))
        assert got.value.hint.endswith("use the name someone/fox")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def set_in_config(model: Path, **values: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | values))


DOWNLOAD_AGAIN = "download the model again"
CAUSES = {
    "weights cut short": (lambda m: cut(m / SINGLE), "cannot be read", DOWNLOAD_AGAIN),
    "json cut short": (lambda m: cut(m / "tokenizer.json"), "cannot be read", "if it was cut"),
    "no model_type": (lambda m: set_in_config(m, model_type=None), "model_type", "config.json"),
    "no layers": (lambda m: set_in_config(m, num_hidden_layers=-1), "sets num", "config.json"),
    "a wrong head": (lambda m: set_in_config(m, vocab_size=0), "vocab_size", "correct config.json"),
    "left from QLoRA": (
        lambda m: set_in_config(m, quantization_config={"quant_method": "bitsandbytes"}),
        "says that its weights are quantized",
        "delete its quantization_config",
    ),
    "absurd json": (
        lambda m: (m / "tokenizer_config.json").write_text('{"a":' * 40 + "1" + "}" * 40),
        "nested",
        "do not use this model",
    ),
    "an end that is no token": (
        lambda m: (m / "generation_config.json").write_text('{"eos_token_id": "x"}'),
        "eos_token_id is 'x'",
        "generation_config.json",
    ),
    "another model's tokenizer": (
        lambda m: (m / "tokenizer.json").write_text('{"model": {"type": "New"}}'),
        "the tokenizer of",
        "copy both from the original model",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_own_hint(fox: Path, cause: str) -> None:
    change, message, hint = CAUSES[cause]
    change(fox)
    with pytest.raises(ModelError) as got:
        load_model(str(fox))
    assert message in got.value.message
    assert hint in got.value.hint
    assert (DOWNLOAD_AGAIN in got.value.hint) == (hint == DOWNLOAD_AGAIN)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (PermissionError(13, "Permission denied"), "check its permissions"),
        (OSError(5, "Input/output error"), "check the disk"),
        (ValueError("the header is damaged"), DOWNLOAD_AGAIN),
    ],
)
def test_the_system_s_errors_are_not_damage(error: Exception, hint: str) -> None:
    assert hint in unreadable(Path("model.safetensors"), error).hint
