"""GGUF files whose tokenizer or chat template is a bomb, or contradicts itself."""

from pathlib import Path

from tests.gguf_bytes import ARRAY, F32, I32, STRING, U32, Gguf
from tests.hostile.gguf_registry import (
    HARMLESS_GGUF,
    REFUSED_GGUF,
    Change,
    in_parts,
    keys,
)

TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
CONTROL = 3


def strings(key: str, edit) -> Change:
    """A list of strings, or another list, that a function changes in place."""

    def change(parts: Gguf) -> None:
        kind, (inner, items) = parts.keys[key]
        parts.keys[key] = kind, (inner, edit(list(items)))

    return in_parts(change)


@in_parts
def _a_million_tokens(parts: Gguf) -> None:
    _, (_, tokens) = parts.keys[TOKENS]
    for key, inner, items in (
        (TOKENS, STRING, [*tokens, *(f"token number {n}" for n in range(1_000_000))]),
        (TYPES, I32, [1] * (1_000_000 + len(tokens))),
    ):
        parts.keys[key] = ARRAY, (inner, items)


@in_parts
def _five_million_tokens_of_nothing(parts: Gguf) -> None:
    parts.keys[TOKENS] = ARRAY, (STRING, [""] * 5_000_000)


@in_parts
def _a_token_of_a_megabyte_times_a_hundred(parts: Gguf) -> None:
    parts.keys[TOKENS] = ARRAY, (STRING, ["o" * 65_000] * 1_000)
    parts.keys[TYPES] = ARRAY, (I32, [1] * 1_000)


def spoilt(index: int, value: object):
    """A list with another item."""
    return lambda items: [*items[:index], value, *items[index + 1 :]]


REFUSED_GGUF["tokenizer"] |= {
    "a_million_tokens": _a_million_tokens,
    "five_million_tokens_of_nothing": _five_million_tokens_of_nothing,
    "long_tokens_of_65_megabytes": _a_token_of_a_megabyte_times_a_hundred,
    "a_token_of_a_megabyte": strings(TOKENS, spoilt(100, "o" * (1 << 20))),
    "a_token_of_sixty_thousand_letters": strings(TOKENS, spoilt(100, "o" * 60_000)),
    "a_token_that_is_not_text": strings(TOKENS, spoilt(100, b"\xff\xfe\xc0")),
    "no_tokens": keys(tokenizer__ggml__tokens=None),
    "an_empty_list_of_tokens": keys(tokenizer__ggml__tokens=(ARRAY, (STRING, []))),
    "tokens_that_are_numbers": keys(tokenizer__ggml__tokens=(ARRAY, (U32, [*range(288)]))),
    "tokens_that_are_one_text": keys(tokenizer__ggml__tokens="a" * 288),
    "one_token_288_times": keys(tokenizer__ggml__tokens=(ARRAY, (STRING, ["a"] * 288))),
    "half_of_the_tokens": strings(TOKENS, lambda tokens: tokens[:144]),
    "fewer_types_than_tokens": strings(TYPES, lambda types: types[:100]),
    "types_in_words": keys(tokenizer__ggml__token_type=(ARRAY, (STRING, ["normal"] * 288))),
    "a_type_for_all": keys(tokenizer__ggml__token_type=1),
    "no_merges": keys(tokenizer__ggml__merges=None),
    "merges_that_are_one_word": keys(tokenizer__ggml__merges=(ARRAY, (STRING, ["t", "h"]))),
    "merges_of_tokens_that_are_not_there": strings(MERGES, lambda m: [*m, "xylo phone"]),
    "merges_that_make_no_token": strings(MERGES, lambda m: [*m, "q q"]),
    "merges_that_are_numbers": keys(tokenizer__ggml__merges=[1, 2, 3]),
    "merges_that_are_one_text": keys(tokenizer__ggml__merges="t h"),
    "a_tokenizer_of_an_unknown_kind": keys(tokenizer__ggml__model="\x1b]0;OWNED\x07"),
    "a_tokenizer_that_is_a_list": keys(tokenizer__ggml__model=["gpt2"]),
    "a_tokenizer_that_is_a_number": keys(tokenizer__ggml__model=2),
    "pieces_without_scores": keys(tokenizer__ggml__model="llama", tokenizer__ggml__merges=None),
    "pieces_whose_scores_are_no_numbers": keys(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__merges=None,
        tokenizer__ggml__scores=(ARRAY, (F32, [float("nan")] * 288)),
    ),
    "pieces_with_scores_in_words": keys(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__merges=None,
        tokenizer__ggml__scores=["high"] * 288,
    ),
    "pieces_with_three_scores": keys(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__merges=None,
        tokenizer__ggml__scores=(ARRAY, (F32, [1.0, 2.0, 3.0])),
    ),
    "a_beginning_in_words": keys(tokenizer__ggml__add_bos_token="perhaps"),
}

HARMLESS_GGUF |= {
    "a_token_twice": strings(TOKENS, lambda tokens: [*tokens[:40], tokens[41], *tokens[41:]]),
    "words_split_by_a_list": keys(tokenizer__ggml__pre=["qwen2"]),
    "words_split_by_a_terminal_command": keys(tokenizer__ggml__pre="\x1b]0;OWNED\x07"),
    "ends_beyond_the_vocabulary": keys(
        tokenizer__ggml__eos_token_id=0xFFFFFFFF, tokenizer__ggml__eot_token_id=(I32, -1)
    ),
    "an_end_just_beyond_the_vocabulary": keys(tokenizer__ggml__eos_token_id=288),
    "ends_in_words": keys(
        tokenizer__ggml__eos_token_id="<|endoftext|>", tokenizer__ggml__bos_token_id=(F32, 1e30)
    ),
}


def template(text: str) -> Change:
    """Another chat template, in which SENTINEL and SECRET stand for files outside."""

    def write(folder: Path, data: bytes, outside: Path) -> Path:
        filled = text.replace("SENTINEL", str(outside / "sentinel"))
        filled = filled.replace("SECRET", str(outside / "secret.json"))
        return keys(tokenizer__chat_template=filled)(folder, data, outside)

    return write


BLOCKS = "{% if messages %}" * 2000 + "x" + "{% endif %}" * 2000
REFUSED_GGUF["tokenizer"] |= {
    "a_template_that_is_a_number": keys(tokenizer__chat_template=7),
    "templates_in_a_list": keys(tokenizer__chat_template=["{{ messages }}", "{{ 1 }}"]),
    "a_template_that_is_not_text": keys(tokenizer__chat_template=b"\xff\xfe{{ 1 }}"),
    "a_template_of_two_megabytes": template("{# " + "x" * (2 << 20) + " #}"),
    "a_template_that_cannot_be_parsed": template("{% if %}"),
    "a_template_that_reads_a_file": template("{% include 'SECRET' %}"),
    "a_template_that_extends_a_file": template("{% extends 'SECRET' %}"),
    "a_template_that_imports": template("{% import 'os' as os %}{{ os.system('touch SENTINEL') }}"),
    "a_template_that_escapes": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a_template_that_escapes_by_a_filter": template(
        "{{ (''|attr('__class__')|attr('__mro__'))[1]|attr('__subclasses__')() }}"
    ),
    "a_template_that_escapes_by_a_format": template(
        "{{ '{0.__class__.__mro__[1].__subclasses__}'.format('').upper() + 1 }}"
    ),
    "a_template_that_runs_a_command": template(
        "{{ cycler.__init__.__globals__.os.system('touch SENTINEL') }}"
    ),
    "a_template_that_runs_python": template(
        '{{ self.__init__.__globals__.__builtins__.exec(\'open("SENTINEL", "w")\') }}'
    ),
    "a_template_that_calls_itself": template("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}"),
    "a_template_that_recurs_in_a_loop": template(
        "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}"
    ),
    "a_template_nested_beyond_the_parser": template(BLOCKS),
    "a_template_of_brackets": template("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"),
    "a_template_of_a_giant_string": template("{{ 'x' * 4000000000 }}"),
    "a_template_of_a_giant_number": template("{{ 9 ** (9 ** 9) }}"),
    "a_template_of_a_giant_list": template("{{ range(99999)|list * 99999 }}"),
    "a_template_that_pads": template("{{ 'x'|center(3000000000) }}"),
    "a_template_that_writes_a_book": template(
        "{% for a in range(9999) %}" + "x" * 9999 + "{% endfor %}"
    ),
    "a_template_that_doubles": template(
        "{% set n = namespace(t='x') %}{% for a in range(60) %}"
        "{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}"
    ),
    "a_template_that_loops": template("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3),
    "a_template_that_writes_half_a_character": template("{{ '\\ud800' }}"),
    "a_template_that_commands_a_terminal": template(
        "{{ raise_exception('\\x1b]0;OWNED\\x07\\u202e') }}"
    ),
    "a_template_that_leaves_the_prompt_out": template("nothing of it"),
}


@in_parts
def _long_pieces_without_merges(parts: Gguf) -> None:
    """Each piece would be cut at each of its ten thousand letters."""
    _, (_, tokens) = parts.keys[TOKENS]
    long = [f"{n}" + "o" * 9_990 for n in range(len(tokens) - 1)]
    parts.keys["tokenizer.ggml.model"] = STRING, "llama"
    parts.keys[TOKENS] = ARRAY, (STRING, [*long, "o"])
    parts.keys["tokenizer.ggml.scores"] = ARRAY, (F32, [0.5] * len(tokens))
    del parts.keys[MERGES]


REFUSED_GGUF["tokenizer"]["long_pieces_without_merges"] = _long_pieces_without_merges
