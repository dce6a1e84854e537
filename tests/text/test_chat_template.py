"""Chat templates: control tokens stay text, reasoning is separate, hostile ones stay in bounds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import Replace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from d3cli.base.errors import ModelError, PromptError, UsageError
from d3cli.base.settings import BUILTIN
from d3cli.files.names import ModelFiles, find_model
from d3cli.model.load import load_model
from d3cli.text import template_sandbox
from d3cli.text.chat_template import encode_chat as encode
from d3cli.text.reasoning import (
    ReasoningSplitter,
    count_thinking,
    opening_tag,
    split_reasoning,
)
from d3cli.text.renderer import Renderer
from tests.conftest import BUILTIN_PATH, D3, check
from tests.families import word_tokenizer
from tests.text.thinking_tags import ALL_TAGS

TOKENIZER = AutoTokenizer.from_pretrained(find_model(BUILTIN).path)
RENDERER = Renderer()


def encode_chat(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], **options: object
) -> list[int]:
    return encode(tokenizer, messages, RENDERER, **options)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class TestEncodeChat:
    SPECIAL = tuple(TOKENIZER.all_special_tokens)

    @pytest.mark.parametrize("token", SPECIAL)
    @pytest.mark.parametrize("role", ["system", "user", "assistant"])
    def test_control_tokens_in_any_message_stay_text(self, token: str, role: str) -> None:
        def specials(filler: str) -> list[int]:
            texts = dict.fromkeys(("system", "user", "assistant"), "Hello.")
            texts[role] += filler
            messages = [{"role": name, "content": text} for name, text in texts.items()]
            ids = encode_chat(TOKENIZER, [*messages, *user("Go on.")])
            return [i for i in ids if i in TOKENIZER.all_special_ids]

        assert specials(f" {token} then {token}{token}") == specials(" nothing")

    def test_benign_text_gives_the_ids_of_the_plain_template(self) -> None:
        messages = user("What is 27 + 45?\n\nTell me!")
        plain = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert encode_chat(TOKENIZER, messages) == list(plain)

    def test_a_model_without_a_template_reads_the_text_as_it_is(self) -> None:
        assert encode_chat(word_tokenizer(), user("w5 w6")) == [5, 6]

    def test_a_byte_order_mark_of_the_template_s_file_is_left_out(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(find_model(BUILTIN).path)
        expected = encode_chat(tokenizer, user("Hello."))
        tokenizer.chat_template = "\ufeff" + tokenizer.chat_template
        assert encode_chat(tokenizer, user("Hello.")) == expected

    def test_another_template_can_be_given(self) -> None:
        template = "{% for m in messages %}w9 {{ m.content }}{% endfor %}"
        assert encode_chat(word_tokenizer(), user("w5"), chat_template=template) == [9, 5]

    @pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", "{% if %}"])
    def test_a_template_that_fails_gives_one_clear_error(self, template: str) -> None:
        with pytest.raises(ModelError, match="cannot render"):
            encode_chat(TOKENIZER, user("hi"), chat_template=template)

    @pytest.mark.parametrize(
        ("template", "refused"),
        [("{{ raise_exception('no') }}", True), ("{{ 'x' * 9999999 }}", False)],
    )
    def test_only_a_template_that_fails_may_refuse_the_system_prompt(
        self, template: str, *, refused: bool
    ) -> None:
        for system in (False, True):
            messages = [{"role": "system", "content": "Be kind."}] * system + user("hi")
            with pytest.raises(ModelError, match="cannot render") as error:
                encode_chat(TOKENIZER, messages, chat_template=template)
            assert ("system prompt" in error.value.hint) == (system and refused)

    def test_a_rendering_without_tokens_names_the_template(self) -> None:
        tokenizer = word_tokenizer()
        tokenizer.backend_tokenizer.normalizer = Replace("hi", "")
        with pytest.raises(ModelError, match="the template of chat_template writes nothing"):
            encode_chat(tokenizer, user("hi"), chat_template="{{ messages[0].content }}")

    def test_thinking_needs_a_template_that_knows_it(self) -> None:
        with pytest.raises(UsageError, match="thinking"):
            encode_chat(TOKENIZER, user("hi"), think=True)
        template = "{{ messages[0].content }} {{ 'w1' if enable_thinking else 'w2' }}"
        for think, last in ((True, 1), (False, 2)):
            ids = encode_chat(word_tokenizer(), user("w5"), chat_template=template, think=think)
            assert ids == [5, last]

    @pytest.mark.parametrize("text", ["", "  \n"])
    def test_an_empty_prompt_is_refused(self, text: str) -> None:
        with pytest.raises(PromptError, match="empty"):
            encode_chat(TOKENIZER, user(text))


def test_reasoning_reaches_the_template_apart_from_the_answer() -> None:
    template = (
        "{% for m in messages %}{{ m.content }} {{ m.reasoning_content or 'w0' }} {% endfor %}"
    )
    messages = [
        *user("<think>w1</think>w2"),
        {"role": "assistant", "content": "<think>\nw3\n</think>\n\nw4"},
        *user("w5"),
    ]
    tokenizer = word_tokenizer()
    expected = tokenizer("<think>w1</think>w2 w0 w4 w3 w5 w0 ", add_special_tokens=False)[
        "input_ids"
    ]
    assert encode_chat(tokenizer, messages, chat_template=template) == expected


class TestReasoning:
    @pytest.mark.parametrize(("start", "end"), ALL_TAGS)
    def test_it_is_split_from_the_answer(self, start: str, end: str) -> None:
        assert split_reasoning(f"{start}\nLet me see.\n{end}\n\nYes.") == ("Let me see.", "Yes.")
        assert split_reasoning(f"\n{start}never ends") == ("never ends", "")
        assert split_reasoning(f"Say {start} aloud{end}.") == ("", f"Say {start} aloud{end}.")
        assert opening_tag(f"<|assistant|>{start}\n") == start

    def test_a_plain_reply_is_all_answer(self) -> None:
        assert split_reasoning("  plain < text") == ("", "  plain < text")
        assert opening_tag("Tell me about <think>ing") == ""

    def test_its_tokens_are_counted(self) -> None:
        pieces = ["<th", "ink>", "Hm", ".</", "think>", "Yes", "."]
        assert count_thinking(pieces) == 5
        assert count_thinking(["Hm.</think>Y", "es."], "<think>") == 1
        assert count_thinking(pieces[:3]) == 3
        assert (
            count_thinking(["Yes", "."]) == count_thinking(["<", "b>"]) == count_thinking([]) == 0
        )

    @given(
        st.sampled_from(
            ["<think>a b</think> c", "<thin", "  <think>x", "no </think>", "[THINK]é[/THINK]"]
        ),
        st.lists(st.integers(1, 5), max_size=20),
    )
    def test_chunk_boundaries_make_no_difference(self, text: str, cuts: list[int]) -> None:
        def parts(chunks: list[str], inside: str) -> list[tuple[str, bool]]:
            splitter = ReasoningSplitter(inside)
            found = [part for chunk in chunks for part in splitter.push(chunk)]
            return [(c, thinking) for t, thinking in [*found, *splitter.flush()] for c in t]

        chunks, rest = [], text
        for cut in cuts:
            chunks.append(rest[:cut])
            rest = rest[cut:]
        for inside in ("", "<think>"):
            assert parts([*chunks, rest], inside) == parts([text], inside)
            assert "".join(c for c, _ in parts([text], inside)) == text


HOSTILE = {
    "endless loop": "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2,
    "giant string": "{{ 'x' * 4000000000 }}",
    "giant text": "{{ 'x' * 50000000 }}",
    "doubling": "{% set n = namespace(s='x') %}" + "{% set n.s = n.s ~ n.s %}" * 64,
    "wide number": "{{ 10 ** (10 ** 8) }}",
    "format": "{{ '%999999999d' | format(1) }}",
    "nested": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep calls": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "attribute escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ ''|attr('__class__')|attr('__base__')|attr('mro')() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__']['open']('SENTINEL', 'w') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('touch SENTINEL') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('touch SENTINEL') }}",
    "mutation": "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
    "surrogate": "{{ '\\ud800' }}",
    "size": "{# " + "x" * (1 << 20) + " #}",
    "syntax": "{% if %}",
    "undefined": "{{ nothing.at.all }}",
}


def test_several_templates_without_a_default_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOKENIZER, "chat_template", {"rag": "a", "tool_use": "b"})
    with pytest.raises(ModelError, match="several chat templates and no default"):
        encode_chat(TOKENIZER, user("hi"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_gives_one_clear_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = tmp_path / "sentinel"
    template = HOSTILE[name].replace("SENTINEL", str(sentinel))
    with monkeypatch.context() as patch:
        patch.setattr("d3cli.text.renderer.RENDER_LIMIT", 1.0)
        with pytest.raises(ModelError, match="cannot render this conversation: ") as failure:
            encode_chat(TOKENIZER, user("hi"), chat_template=template)
    assert len(failure.value.message) < 700
    assert not sentinel.exists()
    assert encode_chat(TOKENIZER, user("hi"))  # the next one works again


def test_the_child_cannot_write_files_or_start_processes(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom d3cli.text import template_sandbox\n"
        "import socket, subprocess\n"
        "template_sandbox.limit()\n"
        "def refused(action):\n"
        "    try:\n        action()\n    except OSError:\n        return True\n"
        "print(refused(lambda: open(sys.argv[1], 'w')), refused(socket.socket),\n"
        "      refused(lambda: os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)),\n"
        "      refused(lambda: os.remove(sys.argv[0])), refused(lambda: os.system('true')),\n"
        "      refused(lambda: subprocess.run(['true'])), refused(lambda: os.fork()))\n"
        "open('/dev/null').close()\nimport wave\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True
    )
    assert child.stdout.split() == ["True"] * 7, child.stderr
    assert child.returncode == 0
    assert not (tmp_path / "x").exists()


def test_the_child_imports_one_module_of_transformers_and_renders_as_all_of_it() -> None:
    template = "{% for m in messages %}{{ m.content | tojson }}{% break %}{% endfor %}{{ tools }}"
    request = {"template": template, "messages": user("é < 3"), "variables": {"n": [1, None]}}
    code = (
        "import json, runpy, sys\n"
        "sys.stdin = iter([sys.argv[1]])\n"
        f"runpy.run_module({template_sandbox.__name__!r}, run_name='__main__')\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ready, answer, modules = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}
    assert answer == template_sandbox.answer(request)
    assert answer["text"].startswith('"é < 3"')
    assert not {"transformers.utils.generic", "torch"} & set(modules)


def test_the_child_ends_with_its_parent() -> None:
    renderer = Renderer()
    assert renderer.render("{{ messages[0].content }}", user("hi"), {}) == "hi"
    child = renderer._child
    assert child is not None
    assert child.poll() is None
    del renderer
    assert child.poll() is not None


def test_only_trusted_templates_run_in_this_process(tmp_path: Path) -> None:
    asks = "{% if messages[0].content == 'pid' %}ok{% endif %}"
    trusting = Renderer(trusted=[asks])
    assert trusting.render(asks, user("pid"), {}) == "ok"
    assert trusting._child is None
    assert trusting.render(asks + " ", user("pid"), {}) == "ok "
    assert trusting._child is not None
    llama = ModelFiles("mine", tmp_path, "meta-llama/Meta-Llama-3-8B-Instruct")
    assert llama.is_known
    assert not ModelFiles("x", tmp_path, str(tmp_path)).is_known
    builtin = load_model()
    assert encode(builtin.tokenizer, user("hi"), builtin.text.renderer)
    assert builtin.text.renderer._child is None


def test_a_stranger_s_model_answers_through_the_child(d3: D3, tmp_path: Path) -> None:
    for file in BUILTIN_PATH.iterdir():
        if file.name != "schedule.json":
            shutil.copy(file, tmp_path)
    same = d3("generate", tmp_path, "What is 2 + 3?", "--max-tokens", "4", "--alpha", "off")
    own = d3("generate", "demo", "What is 2 + 3?", "--max-tokens", "4", "--alpha", "off")
    assert same.out == own.out
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "chat_template.jinja").write_text(HOSTILE["giant string"])
    check(d3("generate", tmp_path, "Hello."), 1, "too much memory")
