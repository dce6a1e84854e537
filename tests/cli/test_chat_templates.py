"""A chat template that cannot be used is refused before the model's weights are read."""

import json
from pathlib import Path

import pytest

from d3cli.base.errors import ModelError
from tests.conftest import BUILTIN_PATH, D3, check
from tests.gguf_models import write_gguf

WEIGHTS_READ = "the weights are read"
BROKEN = "{% if %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModelError(WEIGHTS_READ)

    monkeypatch.setattr("d3cli.model.load.load_weights", refuse)


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    for file in BUILTIN_PATH.iterdir():
        if file.is_file():
            (model / file.name).write_bytes(file.read_bytes())
    return model


def set_template(model: Path, template: str) -> Path:
    (model / "chat_template.jinja").write_text(template)
    return model


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    keys = {"tokenizer.chat_template": BROKEN}
    return write_gguf(tmp_path / "x.gguf", metadata=keys).path


@pytest.mark.parametrize("arguments", [["generate"], ["profile"], ["calibrate"]], ids=str)
def test_a_broken_template_of_a_gguf_file(d3: D3, gguf: Path, arguments: list[str]) -> None:
    prompt = [] if arguments == ["calibrate"] else ["--prompt", "Hi."]
    check(d3(*arguments, gguf, *prompt), 1, "the chat template cannot render this conversation")


def test_a_broken_template_of_a_directory(d3: D3, safetensors: Path) -> None:
    check(d3("generate", set_template(safetensors, BROKEN), "Hi."), 1, "the chat template cannot")


def test_a_broken_template_of_an_option(d3: D3, safetensors: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jinja").write_text(BROKEN)
    result = d3("generate", safetensors, "Hi.", "--chat-template", tmp_path / "broken.jinja")
    check(result, 1, "the chat template cannot")


def test_a_template_that_refuses_the_system_prompt(d3: D3, safetensors: Path) -> None:
    model = set_template(safetensors, NO_SYSTEM)
    check(d3("generate", model, "Hi.", "--system", "Be brief."), 1, "no system")
    check(d3("generate", model, "Hi."), 1, WEIGHTS_READ)


def test_thinking_without_a_switch(d3: D3, safetensors: Path) -> None:
    check(d3("generate", safetensors, "Hi.", "--think", "on"), 2, "has no thinking switch")


def test_what_needs_no_template_runs_with_a_broken_one(d3: D3, gguf: Path, tmp_path: Path) -> None:
    plain, rows = tmp_path / "plain.txt", tmp_path / "rows.jsonl"
    plain.write_text("Once upon a time there was a fox. " * 2000)
    rows.write_text(json.dumps({"text": "Once upon a time."}) + "\n")
    for arguments in (
        ["generate", gguf, "--raw", "--prompt", "Hi."],
        ["profile", gguf, "--raw", "--prompt", "Hi."],
        ["calibrate", gguf, "--data", plain],
        ["calibrate", gguf, "--data", rows],
    ):
        check(d3(*arguments), 1, WEIGHTS_READ)
    rows.write_text(json.dumps({"prompt": "Who is it?", "response": "A fox."}) + "\n")
    check(d3("calibrate", gguf, "--data", rows), 1, "the chat template cannot render")
