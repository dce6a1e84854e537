"""`d3 generate --lossless`: the reply is that of `--alpha off`, and it is said what was drafted."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d3cli.base.amounts import readable_size
from d3cli.cli.signals import Stopped
from d3cli.decode import lossless
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.draft.lookup import LookupSource
from d3cli.decode.loop import DecodedToken
from d3cli.files.safetensors import describe_directory
from d3cli.model.memory import predict_memory
from tests.conftest import BUILTIN_PATH, D3, check
from tests.copies import change_a_tensor, stranger
from tests.decode.draft.fixed import Always
from tests.forks import Forks

STORY = "Tell me a story about a fox."
FLOAT32 = ("--dtype", "float32")
FIGURES = re.compile(
    r" · drafted \d+(, accepted \d+ \(\d+%\))?, \d+\.\d tokens a pass, "
    r"\d+\.\d× \(predicted against plain steps\) · peak "
)


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reply is drafted by lookup, whatever this machine's clock says."""
    monkeypatch.setattr(Drafter, "for_model", lambda *_, **__: Always(LookupSource()))


def reply(d3: D3, *options: str, prompt: str = STORY) -> dict[str, Any]:
    """A reply as JSON."""
    result = d3("generate", prompt, *FLOAT32, "--json", *options)
    assert result.code == 0, result.err
    data: dict[str, Any] = json.loads(result.out)
    return data


def ids(data: dict[str, Any]) -> list[int]:
    return [token["token_id"] for token in data["tokens"]]


def test_the_reply_is_full_depths_and_json_says_what_was_drafted(d3: D3) -> None:
    plain = reply(d3, "--alpha", "off", prompt=f"Repeat: {STORY}")
    data = reply(d3, "--lossless", prompt=f"Repeat: {STORY}")
    assert ids(data) == ids(plain)
    assert data["text"] == plain["text"]
    assert data["schedule"] == plain["schedule"]
    found = data["lossless"]
    assert (found["source"], found["draft_model"]) == ("auto", None)
    assert found["schedule"]["source"] == "shipped"
    for name in ("drafted", "accepted"):
        assert found[name] == sum(source[name] for source in found["sources"].values())
    by_source = [token["drafted_by"] for token in data["tokens"] if token["drafted_by"]]
    assert len(by_source) == found["accepted"] <= found["drafted"]
    assert set(by_source) <= {"lookup", "depth"}
    assert found["tokens_per_pass"] == (len(data["tokens"]) - 1) / found["passes"]
    assert found["draft_s"] + found["verify_s"] <= data["stats"]["decode_s"]


def test_the_stats_line_has_the_drafts(d3: D3, drafts: None) -> None:
    result = d3("generate", STORY, "--lossless", "--max-tokens", "40")
    assert FIGURES.search(result.err), result.err
    one = d3("generate", STORY, "--lossless", "--max-tokens", "1")
    assert "1 token ·" in one.err
    assert "drafted" not in one.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--max-tokens", "31"), "length"),
        (("--max-tokens", "33"), "length"),
        (("--stop", "2, 2, 2, 2, 2, 2, 2, 2"), "stop"),
        (("--stop", "2, 2, 2, 2, 2, 2, 2, 2, 2,"), "stop"),
        (("--context", "58"), "context"),
        (("--context", "60"), "context"),
    ],
    ids=" ".join,
)
def test_a_reply_ends_inside_a_draft_where_it_would_end_without(
    d3: D3, drafts: None, options: tuple[str, ...], reason: str
) -> None:
    again = "1, 2, 3, 1, 2, 3, 1, 2, 3,"  # 27 tokens
    plain = reply(d3, "--raw", "--alpha", "off", *options, prompt=again)
    data = reply(d3, "--raw", "--lossless", *options, prompt=again)
    assert ids(data) == ids(plain)
    assert data["text"] == plain["text"]
    assert data["finish_reason"] == plain["finish_reason"] == reason
    assert any(token["drafted_by"] for token in data["tokens"][-3:])
    steps, found = len(data["tokens"]) - 1, data["lossless"]
    assert found["tokens_per_pass"] == steps / found["passes"]


def test_an_end_token_that_was_drafted_ends_the_reply(d3: D3, drafts: None) -> None:
    prompt = "The fox had a blue coat. The owl had a red hat."
    plain, data = reply(d3, "--alpha", "off", prompt=prompt), reply(d3, "--lossless", prompt=prompt)
    assert ids(data) == ids(plain)
    assert data["finish_reason"] == "stop"
    assert data["tokens"][-1]["drafted_by"] == "lookup"


class TestInterruption:
    def test_inside_a_pass_the_tokens_before_it_stay(
        self, d3: D3, drafts: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes: list[int] = []
        read_few = lossless.read_few

        def broken_off(*arguments: Any) -> Tensor:
            passes.append(1)
            if len(passes) == 5:
                raise Stopped(2)
            return read_few(*arguments)

        plain = reply(d3, "--alpha", "off", prompt="7 x 6")
        monkeypatch.setattr(lossless, "read_few", broken_off)
        self._stays(d3, plain, "7 x 6")

    def test_between_the_tokens_of_a_pass_those_before_it_stay(
        self, d3: D3, drafts: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decode = lossless.decode_lossless

        def broken_off(*arguments: Any, **options: Any) -> Iterator[DecodedToken]:
            for token in decode(*arguments, **options):
                if token.step > 3 and token.drafted_by:
                    raise Stopped(2)
                yield token

        plain = reply(d3, "--alpha", "off", prompt="7 x 6")
        monkeypatch.setattr("d3cli.decode.reply.decode_lossless", broken_off)
        self._stays(d3, plain, "7 x 6")

    def _stays(self, d3: D3, plain: dict[str, Any], prompt: str) -> None:
        result = d3("generate", prompt, *FLOAT32, "--json", "--lossless")
        data = json.loads(result.out)
        assert result.code == 130
        assert data["finish_reason"] == "interrupted"
        assert 3 < len(ids(data)) < len(ids(plain))
        assert ids(data) == ids(plain)[: len(ids(data))]
        assert plain["text"].startswith(data["text"])
        assert data["text"]
        assert data["lossless"]["passes"] > 0

    def test_a_signal_keeps_the_text_and_the_figures(self, forks: Forks) -> None:
        sampled = ("generate", STORY, "--lossless", "--temp", "1", "--seed", "3")
        ended = forks.run(*sampled, signal=signal.SIGINT, after_out=10)
        assert ended.code == 130
        assert ended.out.endswith("\n")
        assert "drafted" in ended.err
        assert "stopped: interrupted" in ended.err


class TestDraftModel:
    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        """A model with the built-in one's tokenizer and size, and other weights."""
        model = stranger(tmp_path / "other")
        change_a_tensor(model, lambda tensor: tensor + 1)
        return model

    def test_its_size_is_judged_and_its_drafts_do_not_change_the_reply(
        self, d3: D3, other: Path
    ) -> None:
        plain = reply(d3, "--alpha", "off", "--max-tokens", "20")
        result = d3(
            *("generate", STORY, *FLOAT32, "--json", "--max-tokens", "20"),
            *("--draft-model", other, "--draft-quantization", "none"),
        )
        assert f"draft model: {other}" in result.err
        assert "the draft model is not smaller than the model" in result.err
        data = json.loads(result.out)
        assert ids(data) == ids(plain)
        assert data["lossless"]["source"] == "auto"
        assert data["lossless"]["draft_model"] == str(other)

    def test_the_same_model_is_refused_unless_its_form_is_another(self, d3: D3) -> None:
        same = ("generate", STORY, "--draft-model", BUILTIN_PATH, "--max-tokens", "3")
        check(d3(*same), 2, "the model of --draft-model is the model itself")
        result = d3(*same, "--draft-quantization", "int8")
        assert result.code == 0, result.err
        assert "not smaller" not in result.err

    def test_another_tokenizer_is_refused(self, d3: D3, other: Path) -> None:
        file = other / "tokenizer.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = data["model"]["vocab"]
        one, two = list(vocabulary)[500:502]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
        file.write_text(json.dumps(data), encoding="utf-8")
        check(d3("generate", STORY, "--draft-model", other), 1, "tokenizers differ in 2 of 2,048")

    def test_both_must_fit_into_memory(
        self, d3: D3, other: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = predict_memory(
            describe_directory("demo", BUILTIN_PATH),
            dtype=torch.float32,
            prompt_tokens=20,
            reply_tokens=20,
        )
        free = one.total + one.weights // 2
        monkeypatch.setattr("d3cli.model.memory.available_memory", lambda device: free)
        words = ("generate", STORY, *FLOAT32, "--max-tokens", "20")
        assert d3(*words).code == 0
        result = d3(*words, "--draft-model", other)
        check(result, 1, "and its draft model")
        assert f"but only {readable_size(free)} are free here" in result.err
        assert "hint: use no --draft-model, or " in result.err


def test_depth_without_anything_to_drop_says_that_no_draft_can_pay(d3: D3, tmp_path: Path) -> None:
    model = stranger(tmp_path / "model")
    result = d3("generate", model, STORY, "--lossless", "depth", "--max-tokens", "3")
    assert result.code == 0
    assert result.err.count("lossless mode: no draft can pay, so decoding is plain") == 1


def test_alpha_is_for_the_drafts_and_that_is_said_once(d3: D3) -> None:
    options = ("--lossless", "depth", "--alpha", "0.5", "--start", "3", "--max-tokens", "20")
    plain = reply(d3, "--alpha", "off", "--max-tokens", "20")
    result = d3("generate", STORY, *FLOAT32, "--json", *options)
    data = json.loads(result.out)
    assert ids(data) == ids(plain)
    assert (data["schedule"]["alpha"], data["schedule"]["source"]) == (1.0, "off")
    schedule = data["lossless"]["schedule"]
    assert (schedule["alpha"], schedule["start"], schedule["source"]) == (0.5, 0, "flags")
    assert result.err.count("--alpha is for the drafts: constant from token 1 on, 9") == 1
    assert result.err.count("--start has no effect on drafts") == 1
