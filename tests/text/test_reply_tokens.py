"""Replies and special tokens: stops, ends of turns, reasoning, text that continues a raw prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from d3cli.base.errors import spelled
from d3cli.cli.output import flag
from d3cli.decode.reply import Reply
from d3cli.decode.session import Engine
from d3cli.profile.record import texts_instead
from d3cli.text.chat_template import encode_chat, own_template
from d3cli.text.control_tokens import TurnEnd, find_turn_end
from d3cli.text.reasoning import split_reasoning
from d3cli.text.renderer import Renderer
from d3cli.text.stop_strings import escaped, unescaped
from d3cli.text.tokens import Detokenizer, encode_raw
from tests.conftest import D3, Result
from tests.scripted_model import scripted
from tests.text.test_control_tokens import CHATML, STYLES, sentencepiece_backend, tokenizer_of

QUESTION = "hi"


def ids_of(tokenizer: Any, *parts: str | int) -> list[int]:
    """Ids of texts, in which special tokens are parsed."""
    return [
        id_
        for part in parts
        for id_ in (
            [part]
            if isinstance(part, int)
            else tokenizer(part, add_special_tokens=False)["input_ids"]
        )
    ]


def answer(tokenizer: Any, reply: Sequence[int], **options: Any) -> Reply:
    """A reply by a model that writes these tokens."""
    raw = options.get("raw", False)
    prompt = options.pop("prompt", QUESTION)
    before = (
        encode_raw(tokenizer, prompt)
        if raw
        else encode_chat(tokenizer, [{"role": "user", "content": prompt}], trusting(tokenizer))
    )
    model = scripted(tokenizer, len(before), reply)
    written = Engine(model).stream(
        prompt, schedule=model.schedule("off"), max_tokens=len(reply), **options
    )
    chunks = list(written)
    assert "".join(chunk.text for chunk in chunks) == written.text
    return written


def trusting(tokenizer: Any) -> Renderer:
    return Renderer(trusted=[own_template(tokenizer)])


def base_of(style: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this style that knows neither a template nor the end of a reply."""
    tokenizer = tokenizer_of(style)
    tokenizer.chat_template = tokenizer.eos_token = None
    return tokenizer


class TestStops:
    @pytest.mark.parametrize(
        ("style", "token"),
        [
            ("qwen-2.5, smollm2", "<|im_end|>"),
            ("llama-3 and later", "<|eot_id|>"),
            ("gemma-2, gemma-3", "<end_of_turn>"),
            ("mistral, mixtral", "[/INST]"),
            ("phi-4-mini", "<|user|>"),  # not special: it stands in the decoded text
        ],
    )
    def test_a_token_of_the_tokenizer_stops_by_its_id(self, style: str, token: str) -> None:
        tokenizer = base_of(style)
        reply = answer(
            tokenizer, ids_of(tokenizer, "yes", token, "!"), stop=token, raw=True, prompt="a b"
        )
        assert reply.text.strip() == "yes"
        assert reply.finish_reason == "stop"
        assert all("\ud800" not in piece for piece in reply.pieces)

    @pytest.mark.parametrize("stop", ["<|im_end|>\n<|im_start|>us", "<|im_end|>\n", "s<|im_end|>"])
    def test_a_stop_may_mix_tokens_and_text(self, stop: str) -> None:
        tokenizer = base_of("qwen-2.5, smollm2")
        script = ids_of(tokenizer, "yes<|im_end|>\n<|im_start|>user")
        reply = answer(tokenizer, script, stop=stop, raw=True)
        assert reply.text == "yes".removesuffix("s" * stop.startswith("s"))
        assert reply.finish_reason == "stop"

    def test_text_between_hidden_tokens_is_as_ever(self) -> None:
        tokenizer = base_of("qwen-2.5, smollm2")
        script = ids_of(tokenizer, "ye<|im_start|>s!")
        reply = answer(tokenizer, script, stop=["|", "im_start", "s<|im_end|>"], raw=True)
        assert reply.text == "".join(reply.pieces) == "yes!"
        assert reply.finish_reason == "length"

    @pytest.mark.parametrize(
        ("typed", "meant"),
        [(r"\n", "\n"), (r"a\tb\r", "a\tb\r"), (r"\\n", r"\n"), (r"\d\.", r"\d\."), ("\\", "\\")],
    )
    def test_escapes_are_read(self, typed: str, meant: str) -> None:
        assert unescaped(typed) == meant

    @given(st.text(alphabet="\\nrt\n\r\t ab"))
    def test_what_is_escaped_can_be_typed(self, text: str) -> None:
        assert unescaped(escaped(text)) == text


# By style: the token that closes a turn, and another one that is the only EOS.
CLOSING = {
    "qwen-2.5, smollm2": ("<|im_end|>", "<|endoftext|>"),
    "llama-3 and later": ("<|eot_id|>", "<|end_of_text|>"),
    "gemma-2, gemma-3": ("<end_of_turn>", "<eos>"),
    "llama-2": ("</s>", None),
    "mistral, mixtral": ("</s>", None),
    "phi-4-mini": ("<|end|>", "<|endoftext|>"),
    "command-r": ("<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
    "glm-4": ("<|user|>", "<|endoftext|>"),  # nothing closes the turn but the next one
}


class TestTurnEnds:
    @pytest.mark.parametrize("style", CLOSING)
    def test_the_token_that_closes_a_turn_is_found(self, style: str) -> None:
        tokenizer, template = tokenizer_of(style), STYLES[style][0]
        closing, eos = CLOSING[style]
        ends = {tokenizer.convert_tokens_to_ids(eos)} if eos else set()
        found = find_turn_end(tokenizer, trusting(tokenizer), template, ends)
        assert found == TurnEnd(tokenizer.convert_tokens_to_ids(closing))
        assert found.notes == ()

    @pytest.mark.parametrize("style", ["qwen-2.5, smollm2", "gemma-2, gemma-3", "phi-4-mini"])
    def test_it_ends_a_reply(self, style: str) -> None:
        tokenizer = tokenizer_of(style)
        closing, eos = CLOSING[style]
        tokenizer.eos_token = eos
        for raw in (False, True):
            reply = answer(tokenizer, ids_of(tokenizer, f"yes{closing}user"), raw=raw)
            assert reply.text.strip() == "".join(reply.pieces).strip() == "yes"
            assert reply.finish_reason == "stop"
            assert reply.tokens[-1].token_id == tokenizer.convert_tokens_to_ids(closing)

    @pytest.mark.parametrize("style", STYLES)
    def test_an_eos_that_closes_turns_is_enough(self, style: str) -> None:
        tokenizer, template = tokenizer_of(style), STYLES[style][0]
        first = find_turn_end(tokenizer, trusting(tokenizer), template, ()).token_id
        assert first is not None
        assert find_turn_end(tokenizer, trusting(tokenizer), template, {first}) == TurnEnd()

    @pytest.mark.parametrize(
        ("after", "note"),
        [
            ("\n\n### Instruction:\n", r"--stop '\n\n### Instruction:'"),
            (" [/ANSWER] ", "--stop ' [/ANSWER]'"),
            ("<|im_end|\n", "--stop '<|im_end|'"),
        ],
    )
    def test_what_is_no_token_is_named(self, after: str, note: str) -> None:
        tokenizer = tokenizer_of("qwen-2.5, smollm2")
        template = f"{{% for m in messages %}}{{{{ m.content }}}}{after}{{% endfor %}}"
        found = find_turn_end(tokenizer, Renderer([template]), template, {tokenizer.eos_token_id})
        [words] = found.notes
        assert note in spelled(words, flag)

    @pytest.mark.parametrize(
        "template",
        [
            "{% for m in messages %}{{ m.content }}\n{% endfor %}",  # nothing closes a turn
            "{{ raise_exception('no') }}",
            "{% if %}",
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "",
        ],
    )
    def test_nothing_is_said_where_nothing_closes_a_turn(self, template: str) -> None:
        tokenizer = tokenizer_of("qwen-2.5, smollm2")
        assert find_turn_end(tokenizer, Renderer([template]), template, ()) == TurnEnd()

    def test_templates_of_typed_content_are_read(self) -> None:
        tokenizer = tokenizer_of("qwen-2.5, smollm2")
        template = CHATML.replace(
            "{{ m['content'] }}", "{% for part in m.content %}{{ part.text }}{% endfor %}"
        )
        found = find_turn_end(tokenizer, Renderer([template]), template, ())
        assert found.token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")

    @pytest.mark.parametrize(
        "template",
        [
            CHATML.replace("m['content']", "m['content'] | upper"),
            CHATML.replace("m['content']", "m['content'] | title"),
            CHATML.replace("m['content']", "m['content'] | capitalize"),
            "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
        ],
    )
    def test_it_is_found_whatever_else_a_template_does(self, template: str) -> None:
        tokenizer = tokenizer_of("qwen-2.5, smollm2")
        found = find_turn_end(tokenizer, Renderer([template]), template, ())
        assert found == TurnEnd(tokenizer.convert_tokens_to_ids("<|im_end|>"))

    def test_another_template_has_its_own_end(self) -> None:
        tokenizer = base_of("qwen-2.5, smollm2")
        script = ids_of(tokenizer, "yes<|im_end|>user")
        plain = answer(tokenizer, script)
        assert (plain.text, plain.finish_reason) == ("yesuser", "length")
        question = [{"role": "user", "content": QUESTION}]
        before = encode_chat(tokenizer, question, Renderer([CHATML]), chat_template=CHATML)
        model = scripted(tokenizer, len(before), script)
        reply = Engine(model).stream(
            QUESTION, chat_template=CHATML, schedule=model.schedule("off"), max_tokens=9
        )
        assert len(list(reply)) == 1 + len(ids_of(tokenizer, "yes"))
        assert (reply.text, reply.finish_reason) == ("yes", "stop")


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """As in Llama 2 converted with transformers, without a Strip decoder."""
    backend = sentencepiece_backend()
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def word_pieces() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "once", "upon", "##s", "a", "time", "stop"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def words_with_suffix() -> PreTrainedTokenizerFast:
    """As in GPT 1: the end of a word is marked."""
    words = ["once</w>", "upon</w>", "a</w>", "time</w>", "stop</w>", "<unk>"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.BPEDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


CONTINUING = {
    "strip": PreTrainedTokenizerFast(tokenizer_object=sentencepiece_backend()),
    "metaspace always": metaspace("always"),
    "metaspace first": metaspace("first"),
    "word pieces": word_pieces(),
    "word ends": words_with_suffix(),
    "bytes": tokenizer_of("qwen-2.5, smollm2"),
}


def tokens(tokenizer: Any, words: str) -> list[int]:
    """The ids of words in the middle of a text."""
    vocabulary = tokenizer.get_vocab()
    if "▁" in vocabulary:
        return [vocabulary[letter] for letter in "▁" + words.replace(" ", "▁")]
    if "once</w>" in vocabulary:
        return [vocabulary[f"{word}</w>"] for word in words.split()]
    if "##s" in vocabulary:
        return [vocabulary[word] for word in words.split()]
    return ids_of(tokenizer, f" {words}")


class TestContinuedText:
    @pytest.mark.parametrize("name", CONTINUING)
    def test_a_prompt_and_its_reply_join(self, name: str) -> None:
        tokenizer = CONTINUING[name]
        before, after = tokens(tokenizer, "once upon"), tokens(tokenizer, "a time stop")
        stream = Detokenizer(tokenizer, before)
        pieces = [stream.push(id_) for id_ in after]
        assert "".join(pieces) + stream.flush() == " a time stop"
        assert stream._decode(before) + " a time stop" == stream._decode([*before, *after])

    @pytest.mark.parametrize("before", ["é", "😀😀😀😀😀😀😀😀😀", "a  ", "a\n", "x </s>"])
    @pytest.mark.parametrize("after", ["😀", "é!", "▁a"])
    def test_whatever_the_prompt_ends_with(self, before: str, after: str) -> None:
        tokenizer = tokenizer_of("llama-2")
        prompt = encode_raw(tokenizer, before)
        reply = [
            id_
            for letter in after
            for id_ in (
                [tokenizer.get_vocab()[letter]]
                if letter in tokenizer.get_vocab()
                else list(letter.encode())
            )
        ]
        stream = Detokenizer(tokenizer, prompt)
        text = "".join(stream.push(id_) for id_ in reply) + stream.flush()
        assert text == after.replace("▁", " ")

    @pytest.mark.parametrize("templates", [True, False])
    def test_raw_replies_and_models_without_a_template(self, templates: bool) -> None:
        tokenizer = tokenizer_of("llama-2")
        if not templates:
            tokenizer.chat_template = None
        script = [tokenizer.get_vocab()[letter] for letter in "▁stop"]
        raw = answer(tokenizer, script, raw=True, prompt="Once upon")
        assert raw.text == "".join(raw.pieces) == " stop"
        chat = answer(tokenizer, script, prompt="Once upon")
        assert chat.text == ("stop" if templates else " stop")


class TestOtherChoices:
    """What full depth would have chosen is decoded in its place in the reply."""

    def test_it_keeps_its_space(self) -> None:
        tokenizer = tokenizer_of("llama-2")
        script, space = tokens(tokenizer, "ab"), tokenizer.get_vocab()["▁"]
        raw = answer(tokenizer, script, raw=True, prompt="Once upon")
        assert texts_instead(raw, [t.token_id for t in raw.tokens]) == raw.pieces == [*" ab"]
        assert texts_instead(raw, [space] * 3) == [" "] * 3
        assert tokenizer.decode([space]) == ""

    def test_it_may_complete_a_character(self) -> None:
        tokenizer = tokenizer_of("llama-2")
        first, second = (tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "é".encode())
        reply = answer(tokenizer, [first, second])
        assert reply.pieces == ["", "é"]
        assert texts_instead(reply, [first, second]) == ["\ufffd", "é"]

    def test_special_tokens_are_written(self) -> None:
        tokenizer = tokenizer_of("llama-2")
        letter = tokenizer.get_vocab()["a"]
        reply = answer(tokenizer, [letter])
        assert texts_instead(reply, [tokenizer.eos_token_id]) == [tokenizer.eos_token]


def with_processor(processor: Any) -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_of("qwen-2.5, smollm2")
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens([AddedToken(name) for name in ("<s>", "</s>", "[CLS]", "[SEP]")])
    backend.post_processor = processor(backend.token_to_id)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def template_processor(single: str) -> Any:
    names = [name for name in single.split() if name != "$A"]
    return lambda id_of: processors.TemplateProcessing(
        single=single, special_tokens=[(name, id_of(name)) for name in set(names)]
    )


# By post-processor: what is added in front.
PROCESSORS = {
    "BOS and EOS": (template_processor("<s> $A </s>"), ["<s>"]),
    "EOS only": (template_processor("$A </s>"), []),
    "two of them": (template_processor("<s> $A </s> [SEP]"), ["<s>"]),
    "BOS only": (template_processor("<s> $A"), ["<s>"]),
    "BERT": (
        lambda id_of: processors.BertProcessing(
            ("[SEP]", id_of("[SEP]")), ("[CLS]", id_of("[CLS]"))
        ),
        ["[CLS]"],
    ),
    "RoBERTa": (
        lambda id_of: processors.RobertaProcessing(
            ("</s>", id_of("</s>")), ("<s>", id_of("<s>")), trim_offsets=False
        ),
        ["<s>"],
    ),
    "a sequence": (
        lambda id_of: processors.Sequence(
            [processors.ByteLevel(), template_processor("<s> $A </s>")(id_of)]
        ),
        ["<s>"],
    ),
}


class TestNothingAfterAPrompt:
    @pytest.mark.parametrize("text", ["Once upon a time", "a", "done</s>", "</s></s>"])
    @pytest.mark.parametrize("name", PROCESSORS)
    def test_no_eos_closes_a_raw_prompt(self, name: str, text: str) -> None:
        processor, opening = PROCESSORS[name]
        tokenizer = with_processor(processor)
        expected = [*tokenizer.convert_tokens_to_ids(opening), *ids_of(tokenizer, text)]
        assert encode_raw(tokenizer, text) == expected

    @pytest.mark.parametrize("name", PROCESSORS)
    def test_nor_a_prompt_without_a_chat_template(self, name: str) -> None:
        processor, opening = PROCESSORS[name]
        tokenizer = with_processor(processor)
        ids = encode_chat(tokenizer, [{"role": "user", "content": "Once</s>"}], Renderer())
        assert ids[len(opening) :] == list(
            tokenizer("Once</s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )
        assert tokenizer.eos_token_id not in ids

    def test_a_bos_in_the_text_is_not_doubled(self) -> None:
        tokenizer = with_processor(PROCESSORS["BOS and EOS"][0])
        assert encode_raw(tokenizer, "<s>Once") == ids_of(tokenizer, "<s>Once")


# By model: the special tokens that mark reasoning, a whole reply, its reasoning and its answer.
THINKING = {
    "Magistral": ("[THINK] [/THINK]", "[THINK]Hm.[/THINK]Yes", "Hm.", "Yes"),
    "MiniMax": ("<mm:think> </mm:think>", "<mm:think>Hm.</mm:think>Yes", "Hm.", "Yes"),
    "LongCat": (
        "<longcat_think> </longcat_think>",
        "<longcat_think>Hm.</longcat_think>Yes",
        "Hm.",
        "Yes",
    ),
    "Qwen-like": ("<think> </think>", "<think>Hm.</think>Yes", "Hm.", "Yes"),
    "Command A": (
        "<|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|> <|END_RESPONSE|>",
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes<|END_RESPONSE|>",
        "Hm.",
        "Yes",
    ),
    "Gemma 4": ("<|channel> <channel|>", "<|channel>thought\nHm.<channel|>Yes", "Hm.", "Yes"),
    "Apertus": (
        "<|inner_prefix|> <|inner_suffix|>",
        "<|inner_prefix|>Hm.<|inner_suffix|>Yes",
        "Hm.",
        "Yes",
    ),
}


def thinker(special: str) -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_of("qwen-2.5, smollm2")
    tokenizer.backend_tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False) for name in special.split()]
    )
    return tokenizer


class TestThinkingTokens:
    @pytest.mark.parametrize("model", THINKING)
    def test_they_stay_in_the_text(self, model: str) -> None:
        special, text, reasoning, said = THINKING[model]
        tokenizer = thinker(special)
        assert tokenizer.convert_tokens_to_ids(special.split()[0]) in ids_of(tokenizer, text)
        reply = answer(tokenizer, ids_of(tokenizer, text))
        assert split_reasoning(reply.text) == (reasoning, said)
        assert "".join(reply.pieces) == reply.text
        assert special.split()[1] in reply.text

    def test_parts_of_gpt_oss(self) -> None:
        tokenizer = thinker("<|channel|> <|message|> <|start|> <|end|> <|return|>")
        stream = Detokenizer(tokenizer, written=written_by(tokenizer))
        text = (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
            "<|channel|>commentary<|message|>So.<|end|><|start|>assistant"
            "<|channel|>final<|message|>Yes<|return|>"
        )
        shown = "".join(stream.push(id_) for id_ in ids_of(tokenizer, text)) + stream.flush()
        assert split_reasoning(shown) == ("Hm.\nSo.", "Yes")
        only = ids_of(tokenizer, "<|channel|>final<|message|>Yes<|return|>")
        assert split_reasoning("".join(stream.push(id_) for id_ in only))[1] == "Yes"

    def test_its_part_end_does_not_end_a_reply(self) -> None:
        tokenizer = thinker("<|channel|> <|message|> <|start|> <|end|> <|return|>")
        template = (
            "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
            "{% endfor %}"
        )
        found = find_turn_end(tokenizer, Renderer([template]), template, {tokenizer.eos_token_id})
        assert found == TurnEnd()

    def test_other_special_tokens_stay_hidden(self) -> None:
        tokenizer = thinker("[THINK] [/THINK]")
        tokenizer.eos_token = None
        reply = answer(tokenizer, ids_of(tokenizer, "a<|im_start|>b"), raw=True)
        assert reply.text == "ab"

    def test_a_stop_may_be_one(self) -> None:
        tokenizer = thinker("[THINK] [/THINK]")
        reply = answer(tokenizer, ids_of(tokenizer, "[THINK]Hm.[/THINK]Yes"), stop="[/THINK]")
        assert (reply.text, reply.finish_reason) == ("[THINK]Hm.", "stop")


def written_by(tokenizer: Any) -> dict[int, str]:
    from d3cli.text.control_tokens import reply_writing

    return reply_writing(tokenizer, (), ())[0]


def test_on_the_command_line(d3: D3, tmp_path: Path) -> None:
    """A directory whose files name no end of a turn, and a template that names one."""
    tokenizer = tokenizer_of("qwen-2.5, smollm2")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path)
    question = [{"role": "user", "content": QUESTION}]
    prompt = encode_chat(tokenizer, question, trusting(tokenizer))
    script = ids_of(tokenizer, "a", "<|im_end|>", "\nuser")
    scripted(tokenizer, len(prompt), script).causal_lm.save_pretrained(tmp_path)

    def generate(*options: str) -> Result:
        return d3("generate", tmp_path, QUESTION, "--alpha", "off", "--max-tokens", "6", *options)

    assert generate().out == "a\n"
    template = tmp_path / "other.jinja"
    template.write_text(CHATML.replace("<|im_end|>\n", "\n###\n"))
    named = generate("--chat-template", str(template))
    assert r"'\n###' after a reply" in named.err
    assert r"--stop '\n###'" in named.err
    assert "after a reply" not in generate("--chat-template", str(template), "--stop", "###").err
