"""Control tokens in messages stay text, in the style of every family that has an alias.

The tokenizers of those models cannot be shipped. The ones here have the same control tokens,
special or merely added, and short templates that write them in the same places. Their other tokens
are the built-in model's bytes and merges, or SentencePiece's bytes.
"""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from d3cli.text.chat_template import encode_chat
from d3cli.text.renderer import Renderer
from tests.conftest import BUILTIN_PATH

RENDERER = Renderer()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
    "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }} </s>{% else %}"
    "<s>[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
)
PIECES = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "<|assistant|>"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}<|assistant|>\n"
)
GRANITE = (
    "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}"
    "<|end_of_text|>\n{% endfor %}<|start_of_role|>assistant<|end_of_role|>"
)
COMMAND_R = (
    "<BOS_TOKEN>{% for m in messages %}<|START_OF_TURN_TOKEN|>{% if m['role'] == 'user' %}"
    "<|USER_TOKEN|>{% else %}<|CHATBOT_TOKEN|>{% endif %}{{ m['content'] }}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
)
GLM_4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "<|assistant|>\n"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}</s>{% else %}"
    "[INST]{{ m['content'] }}[/INST]{% endif %}{% endfor %}"
)
THINKING = CHATML + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
ROLES = "<|system|> <|user|> <|assistant|>"

# By alias: the template, special tokens, tokens that are merely added, SentencePiece or byte-level.
STYLES = {
    "llama-3 and later": (
        LLAMA_3,
        "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
        "",
        False,
    ),
    "llama-2": (LLAMA_2, "<s> </s>", "", True),
    "mistral, mixtral": (MISTRAL, "<s> </s> [INST] [/INST]", "", True),
    "mistral-nemo": (MISTRAL, "<s> </s> [INST] [/INST]", "", False),
    "qwen-2.5, smollm2": (CHATML, "<|endoftext|> <|im_start|> <|im_end|>", "<tool_call>", False),
    "qwen-3, smollm3": (
        THINKING,
        "<|endoftext|> <|im_start|> <|im_end|>",
        "<think> </think>",
        False,
    ),
    "gemma-2, gemma-3": (GEMMA, "<bos> <eos> <start_of_turn> <end_of_turn>", "<table> \n\n", True),
    "phi-3": (PIECES, f"<|end|> <|endoftext|> {ROLES}", "", True),
    "phi-4-mini": (PIECES, "<|endoftext|>", f"<|end|> {ROLES}", False),
    "tinyllama": (ZEPHYR, "<s> </s>", "", True),
    "olmo-2": (ZEPHYR, "<|endoftext|>", ROLES, False),
    "granite-3": (GRANITE, "<|start_of_role|> <|end_of_role|> <|end_of_text|>", "", False),
    "command-r": (
        COMMAND_R,
        "<BOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> "
        "<|USER_TOKEN|> <|CHATBOT_TOKEN|>",
        "",
        False,
    ),
    "glm-4": (GLM_4, f"[gMASK] <sop> <|endoftext|> {ROLES}", "", False),
}


def tokenizer_of(style: str) -> PreTrainedTokenizerFast:
    template, special, added, sentencepiece = STYLES[style]
    if sentencepiece:
        backend = sentencepiece_backend()
    else:
        description = json.loads((BUILTIN_PATH / "tokenizer.json").read_text(encoding="utf-8"))
        for old in description["added_tokens"]:
            del description["model"]["vocab"][old["content"]]
        description["added_tokens"] = []
        description["post_processor"] = None
        vocabulary = {token: i for i, token in enumerate(description["model"]["vocab"])}
        description["model"]["vocab"] = vocabulary
        backend = Tokenizer.from_str(json.dumps(description))
    specials = special.split(" ")
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    backend.add_tokens([AddedToken(token, normalized=False) for token in added.split(" ") if token])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, eos_token=specials[1 % len(specials)]
    )


def sentencepiece_backend() -> Tokenizer:
    """Bytes and letters, with "▁" for a space and before the text, as in Llama 2's tokenizer."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [*"▁abcdefghijklmnopqrstuvwxyz.<>|/[]_ABCDEFGHIJKLMNOPQRSTUVWXYZ", "<unk>"]
    backend = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def conversation(role: str, text: str) -> list[dict[str, str]]:
    texts = {"system": "Be kind.", "user": "Hello.", "assistant": "Hello to you."}
    texts[role] = text
    messages = [{"role": name, "content": content} for name, content in texts.items()]
    return [*messages, {"role": "user", "content": "Go on."}]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("style", STYLES)
def test_control_tokens_in_a_message_stay_text(style: str, role: str) -> None:
    template, special, added, _ = STYLES[style]
    tokenizer = tokenizer_of(style)
    names = [*special.split(" "), *(t for t in added.split(" ") if t.startswith("<|"))]
    names += [token for token in added.split(" ") if token.strip() and token in template]
    control = {tokenizer.convert_tokens_to_ids(name) for name in names}

    def sequence(text: str) -> list[int]:
        return [
            i for i in encode_chat(tokenizer, conversation(role, text), RENDERER) if i in control
        ]

    expected = sequence("nothing here")
    assert expected or style == "nothing"
    for name in names:
        for attack in (name, f"a {name} b", f"{name}{name}", f"{name[:2]}{name}{name[2:]}"):
            assert sequence(attack) == expected, attack
    everything = " ".join(names)
    ids = encode_chat(tokenizer, conversation(role, f"a {everything} b"), RENDERER)
    assert everything in tokenizer.decode(ids, skip_special_tokens=True).replace(" .", ".")


@pytest.mark.parametrize("style", STYLES)
def test_benign_text_gives_the_ids_of_the_plain_template(style: str) -> None:
    tokenizer = tokenizer_of(style)
    for text in ("A < b | c > d.\n\nAnd <table> too.", "Hello.", "  two  spaces "):
        messages = conversation("user", text)
        plain = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert encode_chat(tokenizer, messages, RENDERER) == list(plain)
