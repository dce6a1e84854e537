"""Models that cannot be used: the error says which file is at fault, and how."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, LlamaConfig

from tests.conftest import BUILTIN_PATH, D3, check

STORY = "Tell me a story about a fox."


class TestBrokenModels:
    def copy(self, target: Path, *, without: tuple[str, ...] = ()) -> Path:
        target.mkdir()
        for file in BUILTIN_PATH.iterdir():
            if file.name not in without and file.is_file():
                (target / file.name).write_bytes(file.read_bytes())
        return target

    def test_a_directory_without_a_config(self, d3: D3, tmp_path: Path) -> None:
        check(d3("generate", tmp_path, "Hi."), 1, "has no config.json")

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
    def test_a_directory_whose_name_is_not_utf8(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / os.fsdecode(b"mod\xe9le"))
        result = d3("generate", model, "Hi.")
        check(result, 1, "is not UTF-8")
        assert "hint: rename it" in result.err

    def test_a_directory_without_weights(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m", without=("model.safetensors",))
        check(d3("generate", model, "Hi."), 1, "lacks model.safetensors")
        (model / "pytorch_model.bin").write_bytes(b"pickle")
        result = d3("generate", model, "Hi.")
        check(result, 1, "lacks model.safetensors")
        assert "d3 reads only safetensors" in result.err

    def test_a_missing_shard(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m", without=("model.safetensors",))
        index = {
            "metadata": {},
            "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
        }
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        (model / "model-1.safetensors").write_bytes(b"")
        check(d3("generate", model, "Hi."), 1, "lacks model-2.safetensors")

    def test_an_unsupported_stack(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m")
        BertConfig().save_pretrained(model)
        result = d3("generate", model, "Hi.")
        check(result, 1, 'type "bert" are not supported')
        assert "llama" in result.err

    def change(self, model: Path, name: str, **values: object) -> Path:
        data = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(data | values))
        return model

    @pytest.mark.parametrize("layers", [15, 17, 999])
    def test_a_config_with_another_number_of_layers(
        self, d3: D3, tmp_path: Path, layers: int
    ) -> None:
        model = self.change(self.copy(tmp_path / "m"), "config.json", num_hidden_layers=layers)
        check(
            d3("generate", model, "Hi."), 1, f"asks for {layers:,} layers, but the weights hold 16"
        )

    @pytest.mark.parametrize("value", ["x", -1, True, 1.5])
    @pytest.mark.parametrize("name", ["num_hidden_layers", "sliding_window"])
    def test_a_config_with_an_impossible_number(
        self, d3: D3, tmp_path: Path, name: str, value: object
    ) -> None:
        model = self.change(self.copy(tmp_path / "m"), "config.json", **{name: value})
        check(d3("generate", model, "Hi."), 1, f"sets {name} to {value!r}")

    @pytest.mark.parametrize(
        "settings",
        [
            {"do_sample": True, "temperature": "hot"},
            {"do_sample": True, "temperature": -1},
            {"do_sample": True, "top_k": 1.5},
            {"do_sample": True, "top_p": [1]},
            {"repetition_penalty": "x"},
            {"repetition_penalty": True},
        ],
        ids=str,
    )
    def test_impossible_sampling_settings_are_the_checkpoints_fault(
        self, d3: D3, tmp_path: Path, settings: dict
    ) -> None:
        model = self.change(self.copy(tmp_path / "m"), "generation_config.json", **settings)
        check(d3("generate", model, "Hi."), 1, "generation_config.json cannot be used")

    @pytest.mark.parametrize("eos", ["x", [[1]], {}, 1.5])
    def test_an_impossible_end_of_sequence(self, d3: D3, tmp_path: Path, eos: object) -> None:
        model = self.change(self.copy(tmp_path / "m"), "generation_config.json", eos_token_id=eos)
        check(d3("generate", model, "Hi."), 1, "is not a token's number")

    def test_a_tokenizer_that_fails_when_it_is_used(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m")
        self.change(model, "tokenizer_config.json", model_max_length="x")
        check(d3("generate", model, "Hi."), 1, "the tokenizer of")

    @pytest.mark.parametrize("target", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
    def test_weights_outside_the_directory_are_refused(
        self, d3: D3, tmp_path: Path, target: str
    ) -> None:
        model = self.copy(tmp_path / "m")
        index = {"metadata": {}, "weight_map": {"a": target}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        check(d3("generate", model, "Hi."), 1, "names a file elsewhere")

    @pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"metadata": {}}, {"weight_map": 3}])
    def test_a_damaged_index(self, d3: D3, tmp_path: Path, index: dict) -> None:
        model = self.copy(tmp_path / "m")
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        check(d3("generate", model, "Hi."), 1, "is damaged: it has no")

    def test_shards_in_any_order_hold_all_layers(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m", without=("model.safetensors",))
        tensors = load_file(BUILTIN_PATH / "model.safetensors")
        first = {name for name in tensors if ".15." in name or ".14." in name}
        shards = {"model-1.safetensors": first, "model-2.safetensors": tensors.keys() - first}
        weight_map = {}
        for shard, names in shards.items():
            part = {name: tensors[name] for name in names}
            save_file(part, model / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, shard)
        index = {"metadata": {}, "weight_map": weight_map}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        result = d3("generate", model, STORY, "--max-tokens", "9", "--alpha", "off")
        assert result.code == 0, result.err
        assert result.out == d3("generate", STORY, "--max-tokens", "9", "--alpha", "off").out

    def test_unexpected_tensors_are_named(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m")
        tensors = load_file(model / "model.safetensors")
        tensors["model.layers.3.mlp.extra.weight"] = torch.ones(3)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        check(d3("generate", model, "Hi."), 1, "model.layers.3.mlp.extra.weight")

    @pytest.mark.parametrize(
        "template", ["{{ 1/0 }}", "{% include '/etc/passwd' %}", "{{ ''.__class__.__mro__ }}", "{%"]
    )
    def test_a_hostile_chat_template(self, d3: D3, tmp_path: Path, template: str) -> None:
        model = self.copy(tmp_path / "m")
        (model / "chat_template.jinja").write_text(template)
        check(d3("generate", model, "Hi."), 1, "the chat template cannot render")

    def test_missing_tensors_are_named(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m")
        tensors = load_file(model / "model.safetensors")
        del tensors["model.layers.3.mlp.up_proj.weight"]
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        check(d3("generate", model, "Hi."), 1, "model.layers.3.mlp.up_proj.weight")

    def test_weights_of_another_shape(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m")
        config = LlamaConfig.from_pretrained(model)
        config.intermediate_size += 64
        config.save_pretrained(model)
        check(d3("generate", model, "Hi."), 1, "has the wrong shape for model.layers.0.mlp")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
    def test_damaged_files(self, d3: D3, tmp_path: Path, name: str) -> None:
        model = self.copy(tmp_path / "m")
        (model / name).write_bytes((model / name).read_bytes()[:100])
        check(d3("generate", model, "Hi."), 1, str(model))

    def test_a_directory_of_a_stranger_brings_no_schedule(self, d3: D3, tmp_path: Path) -> None:
        result = d3("generate", self.copy(tmp_path / "m"), "Hi.", "--max-tokens", "2", "--json")
        assert json.loads(result.out)["schedule"]["source"] == "default"
        assert result.err.count("not calibrated") == 1

    def test_a_model_without_a_chat_template_says_so(self, d3: D3, tmp_path: Path) -> None:
        model = self.copy(tmp_path / "m", without=("chat_template.jinja",))
        result = d3("generate", model, "Once upon", "--max-tokens", "2")
        assert result.code == 0
        assert "no chat template" in result.err
