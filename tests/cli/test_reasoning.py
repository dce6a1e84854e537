"""`d3 generate` of models that think first: hidden on request, and a field of the JSON."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from d3cli.cli.signals import Stopped
from d3cli.decode.loop import DecodedToken, decode
from tests.conftest import D3, Result, check
from tests.forks import Forks
from tests.scripted import script

OPENS = "{{ messages[-1].content }}<think>\n"
REPLIES = {
    "tags": (["<think>", "Let me", " see.", "</think>", "\n\n", "Yes", "."], ""),
    "tags that are cut": (["<th", "ink>Let me see.\n</", "thi", "nk>\n", "\nYes", "."], ""),
    "other tags": (["[THINK]Let me see.", "[/TH", "INK]Yes", "."], ""),
    "the prompt opens it": (["Let me see.", "\n</think>", "\n\nYes."], OPENS),
}


class Ask(Protocol):
    def __call__(self, template: str, pieces: list[str], *options: str) -> Result: ...


@pytest.fixture
def ask(d3: D3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs `d3 generate` with a model that writes these pieces; an empty template is its own."""

    def run(template: str, pieces: list[str], *options: str) -> Result:
        script(monkeypatch, pieces)
        words = ["generate", "demo", "Well?", "--max-tokens", str(len(pieces)), *options]
        if template:
            (tmp_path / "t.jinja").write_text(template)
            words += ["--chat-template", str(tmp_path / "t.jinja")]
        return d3(*words)

    return run


@pytest.mark.parametrize(("pieces", "template"), REPLIES.values(), ids=REPLIES)
class TestReasoning:
    def test_hidden_the_answer_alone_is_shown(
        self, pieces: list[str], template: str, ask: Ask
    ) -> None:
        result = ask(template, pieces, "--think", "hide")
        assert (result.code, result.out) == (0, "Yes.\n")
        assert "no answer" not in result.err
        assert f"{len(pieces)} tokens" in result.err

    def test_by_default_all_is_shown(self, pieces: list[str], template: str, ask: Ask) -> None:
        assert ask(template, pieces).out == "".join(pieces) + "\n"

    @pytest.mark.parametrize("options", [[], ["--think", "hide"]])
    def test_json_has_both_parts_and_the_whole(
        self, options: list[str], pieces: list[str], template: str, ask: Ask
    ) -> None:
        data = json.loads(ask(template, pieces, "--json", *options).out)
        assert (data["reasoning"], data["answer"]) == ("Let me see.", "Yes.")
        assert data["text"] == "".join(pieces)


class TestNoAnswer:
    @pytest.mark.parametrize(
        "pieces",
        [["<think>", "Let me"], ["<think>Let me</th", "ink"], ["<think>Let me</think>", "\n"]],
    )
    def test_thinking_that_takes_all_tokens_is_told(self, pieces: list[str], ask: Ask) -> None:
        result = ask("", pieces, "--think", "hide")
        assert (result.code, result.out.strip()) == (0, "")
        assert "no answer: the reply ended while the model was thinking; raise" in result.err
        data = json.loads(ask("", pieces, "--json").out)
        assert data["reasoning"].startswith("Let me")
        assert data["answer"] == ""

    def test_an_open_prompt_that_never_closes(self, ask: Ask) -> None:
        result = ask(OPENS, ["x"] * 5, "--think", "hide")
        assert (result.code, result.out) == (0, "")
        assert "no answer" in result.err

    @pytest.mark.parametrize(
        "pieces", [["Yes", "."], ["\n\n", "Yes."], ["<b>", "Yes."], ["<think"]]
    )
    def test_a_reply_without_reasoning_is_unchanged(self, pieces: list[str], ask: Ask) -> None:
        result = ask("", pieces, "--think", "hide")
        assert result.out == "".join(pieces) + "\n"
        assert "no answer" not in result.err
        data = json.loads(ask("", pieces, "--json").out)
        assert data["reasoning"] is None
        assert data["answer"] == data["text"] == "".join(pieces)


class TestChoice:
    def count(self, ask: Ask, template: str, *options: str) -> int:
        result = ask(template, ["x"], "--json", *options)
        assert result.code == 0, result.err
        return int(json.loads(result.out)["stats"]["prompt_tokens"])

    def test_hide_turns_thinking_on_where_it_can(self, ask: Ask) -> None:
        template = (
            "{{ messages[-1].content }}"
            "{% if enable_thinking is defined and enable_thinking %}a b c d{% endif %}"
        )
        off, on, hide = (
            self.count(ask, template, "--think", word) for word in ("off", "on", "hide")
        )
        assert off < on == hide

    def test_hide_needs_no_switch(self, ask: Ask) -> None:
        template = "{{ messages[-1].content }}"
        assert self.count(ask, template, "--think", "hide") == self.count(ask, template)
        check(ask(template, ["x"], "--think", "on"), 2, "no thinking switch")

    def test_raw_prompts_can_hide_it_too(self, d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
        script(monkeypatch, ["Hm.", "</think>", "Yes."])
        words = ("generate", "--raw", "Well?<think>", "--max-tokens", "3")
        assert d3(*words, "--think", "hide").out == "Yes.\n"
        check(d3(*words, "--think", "off"), 2, "--raw uses no chat template")

    def test_a_profile_shows_every_token(self, d3: D3) -> None:
        check(d3("profile", "Hi.", "--think", "hide"), 2, "d3 profile shows all tokens")


class TestEnds:
    @pytest.mark.parametrize("after", [2, 4, 5])
    def test_an_interrupted_reply_shows_its_answer_so_far(
        self, after: int, ask: Ask, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken_off(*arguments: Any, **options: Any) -> Iterator[DecodedToken]:
            yield from itertools.islice(decode(*arguments, **options), after)
            raise Stopped(2)

        monkeypatch.setattr("tests.scripted.decode", broken_off)
        pieces = ["<think>", "Hm", "</think>", "\n\nYes", " and", " no"]
        result = ask("", pieces, "--think", "hide")
        assert result.code == 130
        assert result.out == {2: "", 4: "Yes\n", 5: "Yes and\n"}[after]
        assert "stopped: interrupted" in result.err

    def test_a_closed_pipe_is_quiet(self, forks: Forks) -> None:
        ended = forks.run("generate", "Tell me a story.", "--think", "hide", close_out=5)
        assert ended.code == 0
        assert "error" not in ended.err
