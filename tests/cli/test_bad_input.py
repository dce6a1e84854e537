"""What a user types or feeds in that cannot be used: one line, a hint, the right exit code."""

from pathlib import Path

import pytest

from tests.conftest import D3, check, hub_repository

STORY = "Tell me a story about a fox."


class TestBadInput:
    """Each causes one clear line and a hint on stderr, and the right exit code."""

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
            (["--top-k", "-2"], "--top-k is -2"),
            (["--min-p", "1"], "--min-p is 1"),
            (["--repetition-penalty", "0"], "--repetition-penalty is 0"),
            (["--seed", "-2"], "--seed is -2"),
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

    @pytest.mark.parametrize("command", ["generate", "profile"])
    def test_an_empty_stop_string_is_refused_before_loading(self, d3: D3, command: str) -> None:
        result = d3(command, "demo", STORY, "--stop", "")
        check(result, 2, "error: a stop string is empty\n")
        assert "model:" not in result.err

    @pytest.mark.parametrize(
        ("option", "value", "instead"),
        [
            *(("--quantization", name, "nested") for name in ("none", "int8", "int4", "bnb-4bit")),
            ("--device", "cuda", "cpu"),
            ("--dtype", "float16", "bfloat16"),
        ],
    )
    @pytest.mark.parametrize("command", ["generate", "profile"])
    def test_low_planes_that_another_option_excludes_are_refused_before_loading(
        self, d3: D3, command: str, option: str, value: str, instead: str
    ) -> None:
        options = ("--alpha", "0.9", "--units", "plane", option, value)
        result = d3(command, "demo", STORY, *options)
        cause = f"--units plane drops the low planes of nested weights, which {option} {value} "
        check(result, 2, f"error: {cause}excludes\n")
        assert f"hint: use {option} {instead}, or leave out --units\n" in result.err
        assert "model:" not in result.err

    def test_a_template_without_text_is_named(self, d3: D3, tmp_path: Path) -> None:
        path = tmp_path / "template.jinja"
        path.touch()
        check(d3("generate", STORY, "--chat-template", path), 2, "template.jinja is empty")
        path.write_text("{{ '' }}")
        result = d3("generate", STORY, "--chat-template", path)
        check(result, 1, "the template of --chat-template leaves out the last message")

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

    @pytest.mark.parametrize("name", ["./my-modle", "/nope/x", "../my-modle", "~/nope"])
    def test_a_path_that_is_not_there_is_no_prompt(self, d3: D3, name: str) -> None:
        check(d3("generate", name, stdin=b"Summarise."), 2, f"there is no file or directory {name}")

    def test_an_empty_model_name_is_no_model(self, d3: D3) -> None:
        check(d3("generate", "", "Hello."), 2, 'no model or directory called ""')

    def test_a_lone_model_says_that_it_was_taken_for_one(self, d3: D3) -> None:
        result = d3("generate", "and/or")
        check(result, 2, "the prompt is empty")
        assert '"and/or" was taken for the model' in result.err

    def test_text_without_an_end_is_refused(self, d3: D3) -> None:
        check(d3("generate", "--prompt-file", "/dev/zero"), 2, "/dev/zero is a device")

    def test_a_model_that_is_not_there_offline(self, d3: D3) -> None:
        result = d3("generate", "llama-3-8b", "Hi.", "--offline")
        check(result, 1, "is not in the local cache")
        assert "hf download meta-llama/" in result.err


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
        check(result, 1, "not in the local cache, and HF_HUB_OFFLINE forbids downloading it")
        assert "hint: unset HF_HUB_OFFLINE" in result.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("serve", "--port", "99999"), "'--port': 99999 is not from 0 to 65535"),
        (("serve", "--port", "http"), "'--port': 'http' is not a whole number"),
        (("serve", "--timeout", "0.5"), "'--timeout': 0.5 is not at least 1"),
        (("serve", "--timeout", "1m"), "'--timeout': '1m' is not a number"),
        (("calibrate", "--documents", "3"), "'--documents': 3 is not at least 32"),
        (("calibrate", "--documents", "9" * 5000), "is not a whole number"),
    ],
)
def test_a_number_out_of_range_is_told_in_d3s_own_words(
    words: tuple[str, ...], says: str, d3: D3
) -> None:
    result = d3(*words)
    check(result, 2, says)
    assert "Input should" not in result.err
    assert len(result.err) < 300
