"""Hostile tokenizers, chat templates and generation settings."""

import json
import pickle
from pathlib import Path

from tests.hostile.registry import (
    REFUSED,
    Bomb,
    code,
    edit,
    harmless,
    refused,
    with_template,
)


@refused
def a_tokenizer_file_elsewhere(model: Path, outside: Path) -> None:
    edit(model / "tokenizer_config.json", fast_tokenizer_files=["../outside/secret.json"])


@refused
def another_version_of_the_tokenizer(model: Path, outside: Path) -> None:
    edit(model / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])
    (model / "tokenizer.4.0.0.json").symlink_to(outside / "secret.json")


@refused
def a_vocabulary_of_another_name_by_a_link(model: Path, outside: Path) -> None:
    (model / "entity_vocab.json").symlink_to(outside / "secret.json")


@refused
def a_token_of_millions_of_letters(model: Path, outside: Path) -> None:
    data = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"].append(data["added_tokens"][-1] | {"id": 300, "content": "o" * 10_000_000})
    (model / "tokenizer.json").write_text(json.dumps(data))


@refused
def a_special_token_of_millions_of_letters(model: Path, outside: Path) -> None:
    edit(model / "tokenizer_config.json", pad_token="o" * 10_000_000)


@refused
def a_number_of_tokenizer_files(model: Path, outside: Path) -> None:
    edit(model / "tokenizer_config.json", fast_tokenizer_files=7)


@harmless
def a_vocabulary_elsewhere(model: Path, outside: Path) -> None:
    secret = str(outside / "secret.json")
    edit(model / "tokenizer_config.json", vocab_file=secret, tokenizer_file=secret)


@refused
def a_tokenizer_that_doubles_and_doubles(model: Path, outside: Path) -> None:
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    normalizer = {"type": "Sequence", "normalizers": [double] * 40}
    edit(model / "tokenizer.json", normalizer=normalizer)


@refused
def a_tokenizer_that_writes_a_book_for_a_letter(model: Path, outside: Path) -> None:
    book = {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 20_000_000}
    edit(model / "tokenizer.json", normalizer=book)


@refused
def a_tokenizer_nested_beyond_the_stack(model: Path, outside: Path) -> None:
    (model / "tokenizer.json").write_text("[" * 200_000 + "]" * 200_000)


@refused
def a_tokenizer_that_is_a_model(model: Path, outside: Path) -> None:
    edit(model / "tokenizer_config.json", tokenizer_class="AutoModelForCausalLM")


@refused
def a_tokenizer_of_bytes(model: Path, outside: Path) -> None:
    edit(model / "tokenizer_config.json", tokenizer_class="ByT5Tokenizer")


@refused
def a_tokenizer_that_the_config_names(model: Path, outside: Path) -> None:
    edit(model / "config.json", tokenizer_class="AutoTokenizer")


@refused
def a_tokenizer_that_adds_a_book(model: Path, outside: Path) -> None:
    piece = {"SpecialToken": {"id": "x", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [piece] * 3000,
        "pair": [],
        "special_tokens": {"x": {"id": "x", "ids": [1] * 100_000, "tokens": ["x"] * 100_000}},
    }
    edit(model / "tokenizer.json", post_processor=processor)


@refused
def a_tokenizer_of_endless_added_tokens(model: Path, outside: Path) -> None:
    settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": n, "content": f"<{n}>"} | settings for n in range(100_000)]
    edit(model / "tokenizer.json", added_tokens=added)


@refused
def a_tokenizer_whose_rust_panics(model: Path, outside: Path) -> None:
    pattern = {"Regex": r"(?:(?:.|[a-z ])+)+\d"}
    normalizer = {"type": "Replace", "pattern": pattern, "content": "x"}
    edit(model / "tokenizer.json", normalizer=normalizer)


@refused
def a_tokenizer_of_more_tokens_than_the_model_knows(model: Path, outside: Path) -> None:
    data = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"].append(data["added_tokens"][-1] | {"id": 5_000_000, "content": "Hi"})
    (model / "tokenizer.json").write_text(json.dumps(data))


@refused
def a_tokenizer_that_is_pickled(model: Path, outside: Path) -> None:
    (model / "tokenizer.json").write_bytes(pickle.dumps(Bomb(outside)))


@refused
def no_tokenizer(model: Path, outside: Path) -> None:
    (model / "tokenizer.json").unlink()


REFUSED |= {
    "a_template_that_loops": with_template("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3),
    "a_template_of_a_giant_string": with_template("{{ 'x' * 4000000000 }}"),
    "a_template_that_escapes": with_template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a_template_that_runs_a_command": with_template(
        "{{ cycler.__init__.__globals__.os.system('touch SENTINEL') }}"
    ),
    "a_template_that_includes": with_template("{% include '/etc/passwd' %}"),
    "a_template_that_imports": with_template(
        "{% import 'os' as os %}{{ os.system('touch SENTINEL') }}"
    ),
    "a_template_of_a_megabyte": with_template("{# " + "x" * (1 << 21) + " #}"),
}


@refused
def another_template_by_a_link(model: Path, outside: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").symlink_to(outside / "secret.json")


REFUSED |= {
    "settings_nested_beyond_the_stack": lambda model, _: (
        (model / "generation_config.json").write_text("[" * 100_000) and None
    ),
    "an_end_token_that_is_none": lambda model, _: edit(
        model / "generation_config.json", eos_token_id="os.system"
    ),
}


@harmless
def settings_that_name_code(model: Path, outside: Path) -> None:
    edit(model / "generation_config.json", custom_generate="someone/repo", trust_remote_code=True)
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(code(outside))
