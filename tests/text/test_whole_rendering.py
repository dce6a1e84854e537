"""Every message stands in what a chat template renders, or the template is refused."""

from collections.abc import Sequence

import pytest
from transformers import AutoTokenizer

from d3cli.base.errors import ModelError
from d3cli.base.settings import BUILTIN
from d3cli.files.names import find_model
from d3cli.text import template_sandbox
from d3cli.text.chat_template import Message, encode_chat
from d3cli.text.renderer import Renderer
from d3cli.text.whole_rendering import TemplateFailedError, TemplateMessage, render_whole

TOKENIZER = AutoTokenizer.from_pretrained(find_model(BUILTIN).path)

LOOP = "{%% for m in messages %%}<%%{{ m.role }}%%>%s{{ '\\n' }}{%% endfor %%}<%%assistant%%>"
PLAIN = LOOP % "{{ m.content }}"
STRICT = (
    "{% if m.content is string %}{{ raise_exception('content must be parts') }}{% endif %}"
    "{% for p in m.content %}{{ p['text'] }}{% endfor %}"
)
# What a template writes of a message, if it reads only typed parts.
PARTS = {
    "text of every part": "{% for p in m.content %}{{ p.text }}{% endfor %}",
    "parts of type text": (
        "{% for p in m.content %}{% if p['type'] == 'text' %}{{ p['text'] | trim }}{% endif %}"
        "{% endfor %}"
    ),
    "the first part": "{{ m['content'][0]['text'] }}",
    "a filter": "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}"
    "{% endfor %}",
    "nothing else": STRICT,
    "a key": "{% for p in m.content %}{{ p[p.type] }}{% endfor %}",
}
# What a template may do with a message that it does not drop.
ALLOWED = {
    "as it is": "{{ m.content }}",
    "trimmed": "{{ m.content | trim }}",
    "as JSON": "{{ m.content | tojson }}",
    "escaped": "{{ m.content | e }}",
    "upper case": "{{ m.content | upper }}",
    "spaces collapsed": "{{ m.content.split() | join(' ') }}",
    "the whole message": "{{ m | tojson }}",
    "string or parts": "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
    "only the answer": "{{ m.content.split('</think>')[-1] }}",
}
DROPPED = {
    "another key": "{{ m.value }}",
    "another role": "{% if m.role == 'human' %}{{ m.content }}{% endif %}",
    "nothing": "",
    "parts of an image": "{% for p in m.content %}{% if p.type == 'image' %}{{ p.text }}{% endif %}"
    "{% endfor %}",
    "parts of another name": "{% for p in m.content %}{{ p.value }}{% endfor %}",
}


def conversation(*texts: str, system: str = "") -> list[Message]:
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + turns


TALK = conversation(
    "Where do <foxes> &\n\n'wolves' live?  ", "In a den — like so.", "user", system="Be very brief."
)


class Counting:
    """Renders with a template, and counts how often."""

    def __init__(self, template: str) -> None:
        self.template, self.renderings = template, 0

    def __call__(self, messages: Sequence[TemplateMessage]) -> str:
        self.renderings += 1
        answer = template_sandbox.answer({"template": self.template, "messages": messages})
        if "error" in answer:
            raise TemplateFailedError(answer["error"])
        return str(answer["text"])

    def whole(self, messages: Sequence[Message]) -> str:
        return render_whole(self, messages, template=self.template, of="the template")


@pytest.mark.parametrize("form", PARTS)
def test_templates_that_read_only_parts_get_parts(form: str) -> None:
    text = Counting(LOOP % PARTS[form]).whole(TALK)
    assert text.replace("  \n", "\n") == Counting(PLAIN).whole(TALK).replace("  \n", "\n")


@pytest.mark.parametrize("parts", PARTS.values())
@pytest.mark.parametrize("role", ["system", "user"])
def test_templates_that_read_parts_of_one_role_only(role: str, parts: str) -> None:
    body = f"{{% if m.role == '{role}' %}}{parts}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
    talk = [TALK[0], TALK[1]]
    text = Counting(LOOP % body).whole(talk)
    assert text.replace("  \n", "\n") == Counting(PLAIN).whole(talk).replace("  \n", "\n")


@pytest.mark.parametrize("form", ALLOWED)
def test_what_a_template_may_do_with_a_message(form: str) -> None:
    render = Counting(LOOP % ALLOWED[form])
    assert render.whole(TALK) == render(TALK)


@pytest.mark.parametrize("form", DROPPED)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_dropped_message_is_refused(form: str, role: str) -> None:
    body = f"{{% if m.role == '{role}' %}}{DROPPED[form]}{{% else %}}{{{{ m.content }}}}"
    named = {"system": "the system prompt", "assistant": "message 3 of 4, which is the assistant's"}
    with pytest.raises(ModelError) as refused:
        Counting(LOOP % (body + "{% endif %}")).whole(TALK)
    wanted = named.get(role, "the last message")
    assert refused.value.message == f"the template leaves out {wanted}"
    assert "another chat_template" in refused.value.hint


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (LOOP % "{{ m.content if not loop.first }}", "message 1 of 3, which is the user's"),
        ("{{ messages[0].content }}", "the last message"),
        ("{% for m in messages[:-1] %}{{ m.content }}{% endfor %}", "the last message"),
        (LOOP % "{{ m.content[:40] }}", "a part of the last message"),
        (LOOP % "{{ m.content.split('\\n')[0] }}", "a part of the last message"),
    ],
)
def test_a_template_that_cuts_the_conversation(template: str, named: str) -> None:
    talk = conversation("Tell me more.", "About what?", "Tell me more.\nAbout foxes " + "now" * 20)
    with pytest.raises(ModelError) as refused:
        Counting(template).whole(talk)
    assert refused.value.message == f"the template leaves out {named}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1].content }}",
        "[INST] {{ messages[-1]['content'] | trim }} [/INST]",
        "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
        "Q: {{ messages[-1].content }}",
        "{% for m in messages %}{% if loop.last %}{% for p in m.content %}{{ p.text }}{% endfor %}"
        "{% endif %}{% endfor %}",
    ],
)
def test_a_template_of_the_last_message_alone_says_so(template: str) -> None:
    alone = [talk for talk in TALK if talk["role"] == "user"][:1]
    assert "wolves" in Counting(template).whole(alone)
    with pytest.raises(ModelError) as refused:
        Counting(template).whole(TALK)
    assert refused.value.message == (
        "the template shows only the last message, and the conversation has more"
    )
    assert "begin a new conversation for each message" in refused.value.hint


@pytest.mark.parametrize("text", ["hi", "user", "system", "You are a helpful assistant.", "%>"])
def test_texts_that_the_template_writes_itself_are_not_mistaken(text: str) -> None:
    default = "You are a helpful assistant.\n"
    assert Counting(default + PLAIN).whole(conversation(text)).endswith(f"{text}\n<%assistant%>")
    for talk in (conversation(text), conversation("Tell me more.", "Why?", text)):
        with pytest.raises(ModelError, match="leaves out the last message"):
            Counting(default + LOOP % "{{ m.content if not loop.last }}").whole(talk)


def test_a_template_may_forget_the_beginning_of_a_long_conversation() -> None:
    forgetful = Counting(
        "{% for m in messages[-3:] %}<%{{ m.role }}%>{{ m.content[:30] if m.role == 'assistant' "
        "else m.content }}{% endfor %}"
    )
    talk = conversation(*(f"{'So, ' * 9}{number}" for number in range(7)), system="Be very brief.")
    assert forgetful.whole(talk) == forgetful(talk)
    talk[-2]["content"] = ""
    assert forgetful.whole(talk) == forgetful(talk)
    with pytest.raises(ModelError, match="leaves out the system prompt"):
        Counting(
            "{% for m in messages[-3:] if m.role != 'system' %}{{ m.content }}{% endfor %}"
        ).whole(talk)


def test_switches_and_reasoning_may_be_taken_out() -> None:
    switch = LOOP % "{{ m.content.replace('/no_think', '').rstrip() }}"
    for system in ("/no_think", "Be brief. /no_think"):
        assert "/no_think" not in Counting(switch).whole(
            conversation("Hello there.", system=system)
        )
    talk = conversation("Hello there.", "", "Go on, please.")
    talk[1]["reasoning_content"] = "Well..."
    assert Counting(PLAIN).whole(talk)
    cut = LOOP % "{{ m.content.split('</think>')[-1] }}"
    assert "Hm" not in Counting(cut).whole(conversation("Hello?", "Hm</think>Yes.", "Thank you."))


def test_a_template_runs_once_when_the_messages_are_found() -> None:
    render = Counting(PLAIN)
    render.whole(
        conversation("What is a fox?", "A small wolf.", "What is a fox?", system="Be nice.")
    )
    assert render.renderings == 1
    render.whole(conversation("hi"))
    assert render.renderings == 3


def test_a_template_s_own_error_is_kept() -> None:
    alternate = LOOP % "{{ raise_exception('roles must alternate') if m.role == 'system' }}"
    with pytest.raises(TemplateFailedError, match="roles must alternate"):
        Counting(alternate).whole(TALK)
    longest = "{% if messages[0].content | length > 9 %}{{ raise_exception('long') }}{% endif %}"
    assert Counting(longest + PLAIN).whole(conversation("hi"))


@pytest.mark.parametrize("parts", PARTS.values())
def test_control_tokens_in_parts_stay_text(parts: str) -> None:
    token = TOKENIZER.eos_token
    renderer = Renderer()  # in its child process

    def ids(template: str) -> list[int]:
        talk = conversation(f"Hello {token} there. {token}")
        return encode_chat(TOKENIZER, talk, renderer, chat_template=template)

    assert ids(LOOP % parts) == ids(PLAIN)
    assert TOKENIZER.eos_token_id not in ids(LOOP % parts)


def test_an_error_names_the_template() -> None:
    for given, named in ((LOOP % "", "the template of chat_template"), (None, "this model's")):
        tokenizer = AutoTokenizer.from_pretrained(find_model(BUILTIN).path)
        tokenizer.chat_template = LOOP % ""
        with pytest.raises(ModelError, match=f"{named}.* leaves out the last message"):
            encode_chat(tokenizer, conversation("Hello."), Renderer(), chat_template=given)
