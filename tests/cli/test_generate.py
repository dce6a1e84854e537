"""`d3 generate` as its users meet it: words, exit codes, stdout and stderr apart."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, LlamaConfig

from d3cli.base.errors import GenerationError
from d3cli.cli import signals
from d3cli.cli.signals import Stopped
from d3cli.decode.loop import DecodedToken, decode
from tests.conftest import BUILTIN_PATH, D3, Result, check, hub_repository
from tests.forks import Forks

STORY = "Tell me a story about a fox."


def d3_process(*arguments: str, **options: object) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("env", {})  # type: ignore[operator]
    return subprocess.Popen(
        [sys.executable, "-m", "d3cli", *arguments],
        env=environment,
        **{"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1} | options,
    )


class TestReply:
    def test_the_reply_alone_goes_to_stdout(self, d3: D3) -> None:
        result = d3("generate", STORY, "--max-tokens", "40")
        assert result.code == 0
        assert len(result.out.split()) > 20
        assert result.out.endswith("\n")
        assert not result.out.endswith("\n\n")
        assert "\x1b" not in result.out + result.err
        assert "the built-in model" in result.err
        assert "tok/s" not in result.out

    def test_the_stats_line_says_everything_once(self, d3: D3) -> None:
        result = d3("generate", STORY, "--alpha", "0.97", "--start", "0", "--max-tokens", "40")
        (line,) = [line for line in result.err.splitlines() if "tok/s" in line]
        for word in ("40 tokens", "TTFT", "mean", "min 9 of 16", "layer ratio", "byte ratio"):
            assert word in line
        assert "peak" in line
        assert line.endswith("length")

    def test_alpha_off_is_what_transformers_generates(self, d3: D3) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(BUILTIN_PATH)
        model = AutoModelForCausalLM.from_pretrained(BUILTIN_PATH, dtype=torch.float32)
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": STORY}], add_generation_prompt=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        expected = tokenizer.decode(
            ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        result = d3("generate", STORY, "--alpha", "off", "--max-tokens", "60", "--dtype", "float32")
        assert result.out.rstrip("\n") == expected

    def test_decay_changes_depth_and_says_so_in_json(self, d3: D3) -> None:
        result = d3(
            "generate", STORY, "--json", "--alpha", "0.98", "--start", "25%", "--max-tokens", "40"
        )
        data = json.loads(result.out)
        assert result.out.count("\n") == 1
        assert data["schema"] == 1
        assert data["schedule"]["source"] == "flags"
        assert (data["schedule"]["alpha"], data["schedule"]["start"]) == (0.98, 10)
        assert len(data["schedule"]["weights"]) == len(data["schedule"]["skip_order"])
        depths = [token["depth"] for token in data["tokens"]]
        assert depths[:11] == [16] * 11
        assert depths[11] < 16
        assert depths == sorted(depths, reverse=True)
        assert [token["step"] for token in data["tokens"]] == list(range(40))
        assert "".join(token["text"] for token in data["tokens"]) == data["text"]
        assert all(token["logprob"] <= 0 for token in data["tokens"])
        assert data["finish_reason"] == "length"
        assert data["stats"]["completion_tokens"] == 40
        assert set(data["stats"]) == {
            *("prompt_tokens", "completion_tokens", "ttft_s", "decode_s", "tokens_per_second"),
            *("mean_depth", "min_depth", "layer_ratio", "byte_ratio", "peak_memory_bytes", "seed"),
        }

    @pytest.mark.parametrize(
        ("options", "source"),
        [
            ([], "shipped"),
            (["--alpha", "off"], "off"),
            (["--alpha", "0.9"], "flags"),
            (["--core-first", "5"], "flags"),
        ],
    )
    def test_json_names_the_schedules_source(self, d3: D3, options: list[str], source: str) -> None:
        result = d3("generate", "Hello.", "--json", "--max-tokens", "2", *options)
        assert json.loads(result.out)["schedule"]["source"] == source

    def test_a_seed_repeats_a_sampled_reply(self, d3: D3) -> None:
        sampled = ("generate", STORY, "--temp", "1.3", "--max-tokens", "25", "--json")
        first = json.loads(d3(*sampled).out)
        seed = str(first["stats"]["seed"])
        assert json.loads(d3(*sampled, "--seed", seed).out)["text"] == first["text"]
        assert json.loads(d3(*sampled, "--seed", "123456").out)["text"] != first["text"]

    def test_a_stop_string_ends_the_reply(self, d3: D3) -> None:
        whole = d3("generate", STORY).out
        result = d3("generate", STORY, "--stop", "zebra", "--stop", ". ")
        assert result.out == whole[: whole.index(". ")] + "\n"
        assert "stopped: stop" in result.err

    def test_a_system_prompt_reaches_the_template(self, d3: D3) -> None:
        plain = json.loads(d3("generate", "Hello.", "--json", "--max-tokens", "1").out)
        longer = d3("generate", "Hello.", "-s", "Be brief.", "--json", "--max-tokens", "1")
        difference = json.loads(longer.out)["stats"]["prompt_tokens"]
        assert difference > plain["stats"]["prompt_tokens"]

    def test_raw_continues_the_text(self, d3: D3) -> None:
        result = d3(
            "generate", "--raw", "Once upon a time there was", "--max-tokens", "5", "--json"
        )
        assert json.loads(result.out)["stats"]["prompt_tokens"] < 10

    def test_raw_leaves_out_a_system_prompt_that_nobody_typed(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("D3_SYSTEM", "Be brief.")
        for command in ("generate", "profile"):
            words = (command, "--raw", "--prompt", "Once upon", "--max-tokens", "3", "--json")
            assert d3(*words).code == 0
        check(d3("generate", "--raw", "Hi.", "--system", "x"), 2, "--raw uses no chat template")

    def test_a_chat_template_file_is_used(self, d3: D3, tmp_path: Path) -> None:
        template = tmp_path / "t.jinja"
        template.write_text("{{ messages[0].content }} and", encoding="utf-8")
        options = ("--chat-template", template, "--max-tokens", "1", "--json")
        data = json.loads(d3("generate", "fox", *options).out)
        assert data["stats"]["prompt_tokens"] < 5


class TestPromptSources:
    def prompt_of(self, result: Result) -> int:
        assert result.code == 0, result.err
        return int(json.loads(result.out)["stats"]["prompt_tokens"])

    def count(self, d3: D3, text: str) -> int:
        return self.prompt_of(d3("generate", "--prompt", text, "--json", "--max-tokens", "1"))

    def test_every_source_gives_the_same_prompt(self, d3: D3, tmp_path: Path) -> None:
        file = tmp_path / "p.txt"
        file.write_text("\ufeff" + STORY + "\n", encoding="utf-8")
        tail = ("--json", "--max-tokens", "1")
        expected = self.count(d3, STORY)
        assert self.prompt_of(d3("generate", STORY, *tail)) == expected
        assert self.prompt_of(d3("generate", "demo", STORY, *tail)) == expected
        assert self.prompt_of(d3("generate", BUILTIN_PATH, STORY, *tail)) == expected
        assert self.prompt_of(d3("generate", "--prompt-file", file, *tail)) == expected
        assert self.prompt_of(d3("generate", *tail, stdin=STORY.encode() + b"\n")) == expected
        assert self.prompt_of(d3("generate", "-", *tail, stdin=STORY.encode())) == expected
        assert self.prompt_of(d3("generate", "demo", "-", *tail, stdin=STORY.encode())) == expected

    def test_piped_text_stands_before_the_prompt(self, d3: D3) -> None:
        tail = ("--json", "--max-tokens", "1")
        both = self.prompt_of(d3("generate", "And why?", *tail, stdin=STORY.encode()))
        assert both == self.count(d3, f"{STORY}\n\nAnd why?")

    def test_a_file_that_holds_a_dash_is_not_stdin(self, d3: D3, tmp_path: Path) -> None:
        file = tmp_path / "dash"
        file.write_text("-")
        tail = ("--json", "--max-tokens", "1")
        expected = self.count(d3, "-")
        assert self.prompt_of(d3("generate", "--prompt-file", file, *tail)) == expected

    def test_an_empty_pipe_is_no_prompt(self, d3: D3) -> None:
        expected = self.count(d3, STORY)
        result = d3("generate", STORY, "--json", "--max-tokens", "1", stdin=b"")
        assert self.prompt_of(result) == expected

    def test_real_pipes_are_read(self) -> None:
        process = d3_process("generate", "--max-tokens", "3", stdin=subprocess.PIPE)
        out, err = process.communicate(STORY.encode(), timeout=120)
        assert process.returncode == 0, err
        assert out.strip()


class TestBadInput:
    """Each gives one clear line and a hint, on stderr, and the right exit code."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--alpha", "0"], "alpha is 0, outside (0, 1]"),
            (["--alpha", "1.5"], "alpha is 1.5, outside (0, 1]"),
            (["--start", "-5"], "--start is -5"),
            (["--alpha", "nan"], "outside (0, 1]"),
            (["--alpha", "fast"], '--alpha is "fast"'),
            (["--start", "-3"], "start is -3"),
            (["--start", "soon"], '--start is "soon"'),
            (["--start", "20%"], "share of --max-tokens"),
            (["--start", "200%", "--max-tokens", "9"], "between 0% and 100%"),
            (["--start", "5000"], "beyond the model's context of 1,024"),
            (["--core-first", "12", "--core-last", "12"], "do not fit a model of 16 layers"),
            (["--core-first", "-1"], "--core-first"),
            (["--max-tokens", "0"], "--max-tokens"),
            (["--max-tokens", "-5"], "--max-tokens"),
            (["--max-tokens", "many"], "--max-tokens"),
            (["--temp", "-1"], "--temperature is -1"),
            (["--system", "a\udcff"], "--system is not UTF-8"),
            (["--stop", "a\udcff"], "--stop is not UTF-8"),
            (["--threads", "1000000"], "--threads"),
            (["--repetition-penalty", "1e-300"], "--repetition-penalty is 1e-300"),
            (["--chat-template", "/no/such"], "there is no chat template /no/such"),
            (["--top-p", "0"], "--top-p is 0"),
            (["--top-p", "1.5"], "--top-p is 1.5"),
            (["--top-k", "-1"], "--top-k is -1"),
            (["--min-p", "1"], "--min-p is 1"),
            (["--repetition-penalty", "0"], "--repetition-penalty is 0"),
            (["--seed", "-1"], "--seed is -1"),
            (["--stop", ""], "stop string is empty"),
            (["--threads", "0"], "--threads"),
            (["--device", "tpu"], '--device is "tpu"'),
            (["--dtype", "int3"], "--dtype"),
            (["--think", "on"], "no thinking switch"),
            (["--raw", "--system", "x"], "--raw"),
            (["--prompt", "x"], "the prompt comes from an argument and from --prompt"),
            (["--no-such-option"], "--no-such-option"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_impossible_options(self, d3: D3, arguments: list[str], message: str) -> None:
        result = d3("generate", "demo", STORY, *arguments)
        check(result, 2, message)

    @pytest.mark.parametrize("text", ["", "   ", "\n"])
    def test_an_empty_prompt(self, d3: D3, text: str) -> None:
        check(d3("generate", text), 2, "the prompt is empty")
        check(d3("generate", "demo"), 2, "the prompt is empty")
        check(d3("generate", stdin=text.encode()), 2, "the prompt is empty")

    def test_a_prompt_file_that_cannot_be_read(self, d3: D3, tmp_path: Path) -> None:
        binary = tmp_path / "b"
        binary.write_bytes(b"\xff\xfe\x00")
        check(d3("generate", "--prompt-file", tmp_path / "no"), 2, "there is no prompt file")
        check(d3("generate", "--prompt-file", tmp_path), 2, "is a directory")
        check(d3("generate", "--prompt-file", binary), 2, "not UTF-8")
        check(d3("generate", stdin=b"\xff"), 2, "not UTF-8")
        check(d3("generate", "a \udcff b"), 2, "not UTF-8")

    def test_a_prompt_longer_than_the_context_names_both_numbers(self, d3: D3) -> None:
        result = d3("generate", "word " * 1500)
        check(result, 2, "context holds 1,024")
        assert "tokens long" in result.err

    def test_an_unknown_model_names_the_nearest(self, d3: D3) -> None:
        for arguments in (["lama-3-8b"], ["lama-3-8b", "Hi."], ["lama-3-8b", "--prompt", "Hi."]):
            result = d3("generate", *arguments)
            check(result, 2, 'no model or directory called "lama-3-8b"')
            assert "llama-3-8b" in result.err

    @pytest.mark.parametrize("name", ["./my-modle", "/nope/x", "../x", "~/nope"])
    def test_a_path_that_is_not_there_is_no_prompt(self, d3: D3, name: str) -> None:
        check(d3("generate", name, stdin=b"Summarise."), 2, f"there is no directory {name}")

    def test_an_empty_model_name_is_no_model(self, d3: D3) -> None:
        check(d3("generate", "", "Hello."), 2, 'no model or directory called ""')

    def test_a_lone_model_says_that_it_was_taken_for_one(self, d3: D3) -> None:
        result = d3("generate", "and/or")
        check(result, 2, "the prompt is empty")
        assert '"and/or" was taken for the model' in result.err

    def test_text_without_an_end_is_refused(self, d3: D3) -> None:
        check(d3("generate", "--prompt-file", "/dev/zero"), 2, "larger than 64 MiB")

    def test_a_model_that_is_not_there_offline(self, d3: D3) -> None:
        result = d3("generate", "llama-3-8b", "Hi.", "--offline")
        check(result, 1, "not complete in the local cache")
        assert "hf download meta-llama/" in result.err


class TestBrokenModels:
    def copy(self, target: Path, *, without: tuple[str, ...] = ()) -> Path:
        target.mkdir()
        for file in BUILTIN_PATH.iterdir():
            if file.name not in without and file.is_file():
                (target / file.name).write_bytes(file.read_bytes())
        return target

    def test_a_directory_without_a_config(self, d3: D3, tmp_path: Path) -> None:
        check(d3("generate", tmp_path, "Hi."), 1, "has no config.json")

    @pytest.mark.parametrize("with_config", [True, False])
    def test_gguf_files_are_told_apart(self, d3: D3, tmp_path: Path, with_config: bool) -> None:
        (tmp_path / "fox.Q4_K_M.gguf").write_bytes(b"GGUF")
        if with_config:
            (tmp_path / "config.json").write_bytes((BUILTIN_PATH / "config.json").read_bytes())
        for name in (tmp_path, tmp_path / "fox.Q4_K_M.gguf"):
            result = d3("generate", name, "Hi.")
            check(result, 1, "GGUF file, which d3 cannot read")
            assert "hint: get the same model as safetensors" in result.err

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
        assert "only safetensors" in result.err

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


class TestHubCache:
    """A model that the hub's cache holds is used without the network."""

    def test_a_complete_model_is_loaded_by_its_id(self, d3: D3) -> None:
        with hub_repository("someone/tiny-fox"):
            result = d3("generate", "someone/tiny-fox", "Hello.", "--max-tokens", "3", "--offline")
        assert result.code == 0, result.err
        assert result.out.strip()

    def test_an_incomplete_one_is_not(self, d3: D3) -> None:
        with hub_repository("someone/tiny-fox", without=("model.safetensors",)):
            result = d3("generate", "someone/tiny-fox", "Hello.", "--offline")
        check(result, 1, "someone/tiny-fox is not complete in the local cache")

    def test_offline_by_environment_is_one_clear_line(self, d3: D3) -> None:
        result = d3("generate", "someone/tiny-fox", "Hello.")
        check(result, 1, "the hub cannot be reached")


class TestConfigFile:
    @pytest.fixture
    def config(self) -> Path:
        return Path(os.environ["D3_HOME"]) / "config.toml"

    def test_flag_before_environment_before_file(
        self, d3: D3, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def tokens(*arguments: str) -> int:
            result = d3("generate", STORY, "--json", *arguments)
            return int(json.loads(result.out)["stats"]["completion_tokens"])

        config.write_text("max_tokens = 3\noffline = true\n")
        assert tokens() == 3
        monkeypatch.setenv("D3_MAX_TOKENS", "4")
        assert tokens() == 4
        assert tokens("--max-tokens", "5") == 5

    def test_help_is_never_withheld(self, d3: D3, config: Path) -> None:
        config.write_text("= broken")
        assert d3("generate", "--help").code == 0

    def test_a_pipe_in_its_place_is_refused(self, d3: D3, config: Path) -> None:
        os.mkfifo(config)
        check(d3("generate", STORY), 2, "is not a regular file")

    def test_the_configured_model_and_own_aliases(self, d3: D3, config: Path) -> None:
        config.write_text(f'model = "mine"\n[aliases]\nmine = "{BUILTIN_PATH}"\n')
        result = d3("generate", STORY, "--max-tokens", "2")
        assert result.code == 0
        assert "model: mine" in result.err

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("temprature = 1", 'unknown setting "temprature"'),
            ('temperature = "hot"', "--temperature"),
            ("= broken", "cannot be read"),
            ("aliases = 3", "[aliases]"),
            ("a = " + "[" * 5000, "cannot be read"),
        ],
    )
    def test_a_wrong_file_is_named(self, d3: D3, config: Path, text: str, message: str) -> None:
        config.write_text(text)
        check(d3("generate", STORY), 2, message)


class TestInterruption:
    @pytest.mark.parametrize(
        ("number", "code"),
        [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
        ids=["HUP", "INT", "TERM"],
    )
    def test_the_partial_text_stays(self, number: signal.Signals, code: int, forks: Forks) -> None:
        sampled = ("generate", STORY, "--temp", "1", "--seed", "3")
        ended = forks.run(*sampled, signal=number, after_out=10)
        assert ended.code == code
        assert ended.out.endswith("\n")
        assert "Traceback" not in ended.err
        assert "stopped: interrupted" in ended.err

    @pytest.mark.parametrize("after", [0.0, 0.05, 0.2, 0.4, 0.8])
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_at_any_moment_is_quiet(
        self, after: float, number: signal.Signals, code: int, forks: Forks
    ) -> None:
        ended = forks.run("generate", STORY, "--temp", "1", signal=number, after=after)
        assert ended.code in (code, 0, -number)  # 0 if it was quicker, negative before it began
        assert "Traceback" not in ended.err

    @pytest.mark.slow
    @pytest.mark.parametrize("delay", [0.0, 0.3, 0.6, 1.0, 1.4])
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_at_any_moment_of_importing_is_quiet(
        self, delay: float, number: signal.Signals, code: int
    ) -> None:
        process = d3_process("generate", STORY, "--temp", "1", bufsize=0)
        assert process.stderr is not None
        process.stderr.readline()  # "model: ...": from now on it loads
        time.sleep(delay)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (code, 0)  # 0: it was quicker
        assert b"Traceback" not in err
        assert b"terminate called" not in err

    @pytest.mark.parametrize(("error", "code"), [(Stopped(2), 130), (GenerationError("step 5"), 1)])
    def test_json_is_whole_when_generation_breaks_off(
        self,
        d3: D3,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException | type[BaseException],
        code: int,
    ) -> None:
        def broken_off(*arguments: object, **options: object) -> Iterator[DecodedToken]:
            yield from itertools.islice(decode(*arguments, **options), 5)  # type: ignore[arg-type]
            raise error

        monkeypatch.setattr("d3cli.decode.reply.decode", broken_off)
        result = d3("generate", STORY, "--json")
        data = json.loads(result.out)
        assert result.code == code
        assert data["finish_reason"] == "interrupted"
        assert len(data["tokens"]) == data["stats"]["completion_tokens"] == 5
        assert data["text"]

    def test_an_interruption_with_a_dead_pipe_is_still_an_interruption(self, forks: Forks) -> None:
        sampled = ("generate", STORY, "--temp", "1", "--seed", "3")
        ended = forks.run(*sampled, signal=signal.SIGINT, after_out=10, close_out=10)
        assert "Traceback" not in ended.err
        assert ended.code in (130, 0)  # 0 if it saw the closed pipe first

    def test_memory_that_runs_out_is_one_clear_line(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("d3cli.cli.request.load", full)
        result = d3("generate", STORY)
        check(result, 1, "out of memory: CUDA out of memory")
        assert "bnb-4bit" in result.err

    def test_memory_that_runs_out_while_loading_is_not_the_files_fault(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("d3cli.model.check.model_class", full)
        result = d3("generate", STORY)
        check(result, 1, "out of memory")
        assert "damaged" not in result.err

    def test_a_closed_pipe_is_quiet(self, forks: Forks) -> None:
        ended = forks.run("generate", STORY, close_out=5)
        assert ended.code == 0
        assert "error" not in ended.err
        assert "Broken" not in ended.err

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    @pytest.mark.parametrize("extra", [[], ["--json"]])
    def test_a_full_disk_is_one_clear_error(self, extra: list[str], forks: Forks) -> None:
        ended = forks.run("generate", STORY, "--max-tokens", "5", *extra, out="/dev/full")
        assert ended.code == 1
        assert "cannot write to standard output: No space left" in ended.err
        assert "Traceback" not in ended.err
        assert "Exception ignored" not in ended.err


class TestDebug:
    def test_a_traceback_comes_with_debug_only(self, d3: D3) -> None:
        assert "Traceback" not in d3("generate", "--alpha", "7", "Hi.").err
        assert "Traceback" in d3("generate", "--alpha", "7", "Hi.", "--debug").err

    @pytest.mark.parametrize(
        "command", ["", "chat", "generate", "profile", "calibrate", "doctor", "models"]
    )
    def test_help_asks_for_no_value_where_none_follows(self, d3: D3, command: str) -> None:
        shown = d3(*command.split(), "-h").out
        assert "--help" in shown and " -h " in shown
        assert "bool" not in shown

    def test_no_command_shows_the_help(self, d3: D3) -> None:
        result = d3()
        assert result.code == 0
        assert "generate" in result.out
        assert result.err == ""

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_stderr_that_cannot_be_written_does_not_cost_the_reply(self, forks: Forks) -> None:
        ended = forks.run("generate", STORY, "--max-tokens", "5", err="/dev/full")
        assert ended.code == 0
        assert ended.out.strip()

    def test_what_transformers_logs_of_a_config_is_not_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")  # for other programs
        model = tmp_path / "m"
        shutil.copytree(BUILTIN_PATH, model)
        config = json.loads((model / "config.json").read_text())
        config["use_return_dict"] = "\x1b]0;OWNED\x07\u202e"  # it cannot be set, says transformers
        (model / "config.json").write_text(json.dumps(config))
        process = d3_process("generate", str(model), "Hi.", "--max-tokens", "2")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert err.count(b"\n") == 3  # the model, the error, the hint
        assert b"OWNED" not in err

    def test_a_terminal_that_goes_is_a_hangup_whatever_fails_first(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def gone(*_: object, **__: object) -> None:
            monkeypatch.setattr(signals, "_arrived", [signal.SIGHUP])
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("d3cli.cli.request.load", gone)
        result = d3("generate", "Hi.")
        assert result.code == 129
        assert not result.err

    def test_the_traceback_is_inert(self, d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ValueError("oh\x1b[31m no")

        monkeypatch.setattr("d3cli.cli.request.load", broken)
        result = d3("generate", "Hi.", "--debug")
        assert "Traceback" in result.err
        assert "\x1b" not in result.err

    def test_a_defect_of_ours_is_one_line_too(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("oh\x1b[31m no")

        monkeypatch.setattr("d3cli.cli.request.load", broken)
        result = d3("generate", "Hi.")
        check(result, 1, "internal error: ZeroDivisionError: oh␛[31m no")
        assert "--debug" in result.err


class TestImports:
    def imported(self, *arguments: str) -> set[str]:
        code = (
            "import sys\nfrom d3cli.cli.app import run\n"
            f"run({list(arguments)!r})\nprint(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return {name.partition(".")[0] for name in done.stderr.split()}

    @pytest.mark.parametrize(
        "arguments", [["--help"], ["generate", "--help"], ["--version"], ["generate", "lama-3-8b"]]
    )
    def test_help_and_early_errors_do_not_import_torch(self, arguments: list[str]) -> None:
        heavy = {"torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "jinja2"}
        assert not heavy & self.imported(*arguments)

    def test_importing_the_package_does_not_import_torch(self) -> None:
        code = "import sys, d3cli; assert 'torch' not in sys.modules; d3cli.Engine"
        subprocess.run([sys.executable, "-c", code], check=True)
