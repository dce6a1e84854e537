"""`d3 generate` as its users see it: the reply, its figures, and where a prompt comes from."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.conftest import BUILTIN_PATH, D3, Result, check
from tests.processes import d3_process

STORY = "Tell me a story about a fox."


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
        assert set(data) == {
            *("schema", "model", "dtype", "quantization", "text", "reasoning", "answer"),
            *("finish_reason", "schedule", "lossless", "stats", "tokens"),
        }
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
        assert data["lossless"] is None
        assert {token["drafted_by"] for token in data["tokens"]} == {None}
        assert data["finish_reason"] == "length"
        assert data["stats"]["completion_tokens"] == 40
        assert set(data["stats"]) == {
            *("prompt_tokens", "completion_tokens", "ttft_s", "decode_s", "tokens_per_second"),
            *("mean_depth", "min_depth", "layer_ratio", "byte_ratio", "peak_memory_bytes", "seed"),
            *("full_bits", "bits", "min_bits"),
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

    @pytest.mark.parametrize(
        ("options", "dtype", "quantization"),
        [
            (("--dtype", "float32"), "float32", None),
            (("--dtype", "bfloat16", "--quantization", "int8"), "bfloat16", "int8"),
            (("--dtype", "bfloat16", "--quantization", "nested"), "bfloat16", "nested"),
        ],
    )
    def test_json_names_the_model_and_the_form_of_its_weights(
        self, d3: D3, options: tuple[str, ...], dtype: str, quantization: str | None
    ) -> None:
        data = json.loads(d3("generate", "Hello.", "--json", "--max-tokens", "2", *options).out)
        assert (data["model"], data["dtype"]) == ("the built-in model", dtype)
        assert data["quantization"] == quantization

    def test_a_shipped_start_may_lie_beyond_a_short_context(self, d3: D3) -> None:
        arguments = ("generate", "--raw", "hi", "--context", "8", "--temperature", "0", "--json")
        by_default, full = d3(*arguments), d3(*arguments, "--alpha", "off")
        assert by_default.code == 0, by_default.err
        assert json.loads(by_default.out)["text"] == json.loads(full.out)["text"]
        check(d3(*arguments, "--start", "9"), 2, "beyond the model's context of 8")

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

    def test_raw_leaves_out_a_configured_system_prompt(
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

    def test_a_template_of_typed_parts_gets_them_or_is_refused(
        self, d3: D3, tmp_path: Path
    ) -> None:
        template = tmp_path / "t.jinja"
        texts = {}
        for form in ("m.content", "m.content[0].text", "m.value"):
            template.write_text(f"{{% for m in messages %}}{{{{ {form} }}}} {{% endfor %}}")
            texts[form] = d3("generate", STORY, "--chat-template", template, "--max-tokens", "9")
        assert texts["m.content"].code == 0
        assert texts["m.content[0].text"].out == texts["m.content"].out
        check(texts["m.value"], 1, "--chat-template leaves out the last message")


class TestPromptSources:
    def prompt_of(self, result: Result) -> int:
        assert result.code == 0, result.err
        return int(json.loads(result.out)["stats"]["prompt_tokens"])

    def count(self, d3: D3, text: str) -> int:
        return self.prompt_of(d3("generate", "--prompt", text, "--json", "--max-tokens", "1"))

    def test_every_source_yields_the_same_prompt(self, d3: D3, tmp_path: Path) -> None:
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
