"""Thinking is turned on and off by whatever variable a chat template reads for it."""

import pytest
from transformers import AutoTokenizer

from d3cli.base.errors import ModelError, UsageError
from d3cli.text.chat_template import encode_chat
from d3cli.text.renderer import Renderer
from d3cli.text.thinking_switch import find_switch
from tests.conftest import BUILTIN_PATH

RENDERER = Renderer()
TALK = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<model>"
# In the style of public templates: what stands before or after the conversation.
SWITCHES = {
    "Qwen 3": (
        "enable_thinking",
        TALK + "{% if enable_thinking is defined and enable_thinking is false %}no{% endif %}",
    ),
    "DeepSeek V3.1": (
        "thinking",
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
        + TALK
        + "{% if thinking %}<think>{% else %}</think>{% endif %}",
    ),
    "Granite 3": ("thinking", "{% if thinking %}Think first.{% endif %}" + TALK),
    "Kimi K2.5": (
        "thinking",
        TALK + "{%- if thinking is defined and thinking is false -%}<think></think>"
        "{%- else -%}<think>{%- endif -%}",
    ),
    "Command A": ("reasoning", TALK + "{{ 'no' if reasoning is defined and not reasoning }}"),
    "MiniMax M3": (
        "thinking_mode",
        "{% if thinking_mode is not defined %}{% set thinking_mode = 'adaptive' %}{% endif %}"
        + TALK
        + "{% if thinking_mode == 'enabled' %}<mm:think>"
        "{% elif thinking_mode == 'disabled' %}</mm:think>{% endif %}",
    ),
    "DeepSeek V4": (
        "thinking_mode",
        "{% set mode = thinking_mode | default('thinking') %}"
        + TALK
        + "{{ '<think>' if mode == 'thinking' else '</think>' }}",
    ),
    "Mistral Small 4": (
        "reasoning_effort",
        "{% set effort = reasoning_effort | default('none') %}"
        "{% if effort not in ['none', 'high'] %}{{ raise_exception('effort') }}{% endif %}"
        "[{{ effort }}]" + TALK,
    ),
    "Seed-OSS": (
        "thinking_budget",
        "{% if thinking_budget is not defined %}{% set thinking_budget = -1 %}{% endif %}"
        "{% if thinking_budget == 0 %}Answer at once.{% endif %}" + TALK,
    ),
    "only typed parts": (
        "enable_thinking",
        "{% for m in messages %}{% for p in m.content %}{{ p.text + '' }}{% endfor %}{% endfor %}"
        "{{ 'no' if not enable_thinking }}",
    ),
    "a system prompt": (
        "enable_thinking",
        "{% if messages[0].role == 'system' %}{{ '/think' if enable_thinking else '/no_think' }}"
        "{% endif %}" + TALK,
    ),
}
NONE = {
    "no variable": TALK,
    "a comment": "{# enable_thinking is not supported #}" + TALK,
    "a key of a message": "{% for m in messages %}{{ m.content }}{{ m.thinking }}{% endfor %}",
    "a variable of its own": "{% set thinking = 'quser' %}{{ thinking }}" + TALK,
    "tags": TALK + "<think>",
    # "none" would be written as it is.
    "gpt-oss": "Reasoning: {{ reasoning_effort | default('medium') }}\n" + TALK,
}


@pytest.mark.parametrize("style", SWITCHES)
def test_the_switch_is_what_makes_a_difference(style: str) -> None:
    name, template = SWITCHES[style]
    switch = find_switch(RENDERER, template)
    assert switch is not None
    assert switch.name == name
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_PATH)
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there."}]
    on, off = (
        encode_chat(tokenizer, talk, RENDERER, chat_template=template, think=think)
        for think in (True, False)
    )
    assert on != off


@pytest.mark.parametrize("style", NONE)
def test_a_template_without_a_switch(style: str) -> None:
    assert find_switch(RENDERER, NONE[style]) is None
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_PATH)
    with pytest.raises(UsageError, match="has no thinking switch"):
        encode_chat(
            tokenizer,
            [{"role": "user", "content": "Hello there."}],
            RENDERER,
            chat_template=NONE[style],
            think=True,
        )


def test_a_broken_template_reports_its_own_failure() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_PATH)
    with pytest.raises(ModelError, match="cannot render this conversation: no"):
        encode_chat(
            tokenizer,
            [{"role": "user", "content": "Hello there."}],
            RENDERER,
            chat_template="{{ raise_exception('no') if enable_thinking or true }}",
            think=True,
        )
