"""A corpus of models that a stranger might hand out: each is a small change to a good one."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path, Path], None]

# What each does to a copy of the built-in model; the second path lies outside, with a sentinel to
# be made by whoever runs code, and files that are of no concern to a model.
REFUSED: dict[str, Change] = {}
HARMLESS: dict[str, Change] = {}  # looks bad, and must run without doing it


def refused(change: Change) -> Change:
    REFUSED[change.__name__] = change
    return change


def harmless(change: Change) -> Change:
    HARMLESS[change.__name__] = change
    return change


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | changes))


def code(outside: Path) -> str:
    """Python that leaves the sentinel."""
    return (
        f"open({str(outside / 'sentinel')!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    )


class Bomb:
    """Unpickling it runs a command."""

    def __init__(self, outside: Path) -> None:
        self.sentinel = outside / "sentinel"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.sentinel}'",)


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header, and its data."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(path: Path, head: bytes, data: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + data)


def weights(model: Path) -> Path:
    return model / "model.safetensors"


def first_name(head: dict[str, Any]) -> str:
    return next(name for name in head if name != "__metadata__")


def change_tensor(model: Path, **changes: Any) -> None:
    head, data = header(weights(model))
    head[first_name(head)] |= changes
    write(weights(model), json.dumps(head).encode(), data)


def shard(model: Path, name: object) -> None:
    """The weights by an index that names this shard."""
    head, _ = header(weights(model))
    names = dict.fromkeys((n for n in head if n != "__metadata__"), name)
    index = {"metadata": {}, "weight_map": names}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def replace_by_link(path: Path, target: str | Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# ---- configs that name code


@refused
def code_for_a_type_of_its_own(model: Path, outside: Path) -> None:
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(model / "config.json", model_type="evil", auto_map=names)
    (model / "evil.py").write_text(code(outside))


@harmless
def code_for_a_known_type(model: Path, outside: Path) -> None:
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(model / "config.json", auto_map=names, trust_remote_code=True)
    (model / "evil.py").write_text(code(outside))


@harmless
def code_for_the_tokenizer(model: Path, outside: Path) -> None:
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Model", "evil.Model"]})
    (model / "evil.py").write_text(code(outside))


@refused
def an_attention_kernel(model: Path, outside: Path) -> None:
    edit(model / "config.json", _attn_implementation="someone/repo")


@refused
def an_attention_kernel_by_its_public_name(model: Path, outside: Path) -> None:
    edit(model / "config.json", attn_implementation="flash_attention_2|someone/repo:function")


@refused
def an_attention_kernel_of_a_part(model: Path, outside: Path) -> None:
    edit(model / "config.json", attn_implementation={"": "sdpa", "text": "someone/repo@main"})


@refused
def an_attention_kernel_deep_inside(model: Path, outside: Path) -> None:
    edit(model / "config.json", sub={"a": [{"_attn_implementation_internal": "someone/repo"}]})


@refused
def a_kernel_for_experts(model: Path, outside: Path) -> None:
    edit(model / "config.json", experts_implementation="someone/repo")


@harmless
def a_known_attention_that_is_not_here(model: Path, outside: Path) -> None:
    edit(model / "config.json", _attn_implementation="flash_attention_2")


@harmless
def a_dtype_that_is_a_function(model: Path, outside: Path) -> None:
    edit(model / "config.json", dtype="float32", torch_dtype="load")


@refused
def weights_elsewhere_by_config(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    edit(model / "config.json", transformers_weights="../outside/other.safetensors")


@refused
def an_unknown_quantizer(model: Path, outside: Path) -> None:
    edit(model / "config.json", quantization_config={"quant_method": "someone/repo"})


@refused
def plain_weights_that_claim_to_be_quantized(model: Path, outside: Path) -> None:
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(model / "config.json", quantization_config=quantized)


@refused
def a_setting_that_logs_escape_codes(model: Path, outside: Path) -> None:
    edit(model / "config.json", use_return_dict="\x1b]0;OWNED\x07\u202e")


@refused
def a_type_that_is_a_path(model: Path, outside: Path) -> None:
    edit(model / "config.json", model_type="../outside/evil")


@refused
def another_config_in_its_place(model: Path, outside: Path) -> None:
    data = json.loads((model / "config.json").read_text())
    (model / "config.4.0.0.json").write_text(json.dumps(data | {"vocab_size": 10**8}))
    edit(model / "config.json", configuration_files=["config.4.0.0.json"])


@refused
def an_attention_that_is_a_list(model: Path, outside: Path) -> None:
    edit(model / "config.json", attn_implementation=["x"])


@harmless
def what_gemma_and_old_transformers_write(model: Path, outside: Path) -> None:
    edit(model / "config.json", cache_implementation="hybrid", _attn_implementation_autoset=True)


# ---- configs of absurd sizes


def size(**changes: Any) -> Change:
    def change(model: Path, outside: Path) -> None:
        edit(model / "config.json", **changes)

    return change


REFUSED |= {
    "a_million_layers": size(num_hidden_layers=1_000_000),
    "layers_by_a_fraction": size(num_hidden_layers=16.5),
    "no_layers": size(num_hidden_layers=0),
    "fewer_layers_than_there_are": size(num_hidden_layers=2),
    "a_huge_vocabulary": size(vocab_size=2_000_000_000),
    "a_negative_vocabulary": size(vocab_size=-5),
    "a_huge_mlp": size(intermediate_size=1_000_000_000),
    "a_huge_hidden_size": size(hidden_size=100_000_000),
    "a_huge_head": size(head_dim=1_000_000_000),
    "a_hundred_million_heads": size(num_attention_heads=100_000_000),
    "heads_that_divide_nothing": size(num_attention_heads=3, num_key_value_heads=7),
    "no_key_value_heads": size(num_key_value_heads=0),
    "positions_beyond_all": size(max_position_embeddings=1 << 60),
    "a_context_of_one_token": size(max_position_embeddings=1),
    "an_infinite_size": size(intermediate_size=float("inf")),
    "a_text_for_a_size": size(hidden_size="large"),
    "ten_million_labels": size(num_labels=10_000_000),
    "a_table_of_gigabytes": size(
        rope_parameters={
            "rope_type": "linear",
            "factor": 1.0,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 3e7,
        }
    ),
    "a_list_for_a_size": size(hidden_size=[128] * 1000),
    "rope_by_an_unknown_rule": size(rope_scaling={"rope_type": "__import__", "factor": 1}),
    "an_activation_that_is_a_module": size(hidden_act="os.system"),
}


@refused
def a_config_nested_beyond_the_stack(model: Path, outside: Path) -> None:
    (model / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


@refused
def a_config_nested_a_little_too_deep(model: Path, outside: Path) -> None:
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    edit(model / "config.json", deep=deep)


@refused
def a_config_of_a_hundred_megabytes(model: Path, outside: Path) -> None:
    edit(model / "config.json", padding="x" * 100_000_000)


@refused
def a_config_of_millions_of_objects(model: Path, outside: Path) -> None:
    edit(model / "config.json", x=[{}] * 200_000)


@refused
def layers_that_are_nothing(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    for layer in range(16, 20_000):
        head[f"model.layers.{layer}.x"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    write(weights(model), json.dumps(head).encode(), data)
    edit(model / "config.json", num_hidden_layers=20_000)


@refused
def a_config_that_says_one_thing_twice(model: Path, outside: Path) -> None:
    text = (model / "config.json").read_text().rstrip().removesuffix("}")
    (model / "config.json").write_text(text + ', "model_type": "gpt2"}')


@refused
def a_config_that_is_a_list(model: Path, outside: Path) -> None:
    (model / "config.json").write_text("[1, 2, 3]")


@refused
def a_config_with_a_number_of_a_million_digits(model: Path, outside: Path) -> None:
    text = (model / "config.json").read_text().rstrip().removesuffix("}")
    (model / "config.json").write_text(text + ', "n": ' + "9" * 1_000_000 + "}")


# ---- files that are none, or lie elsewhere


@refused
def a_config_that_is_a_pipe(model: Path, outside: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")


@refused
def generation_settings_that_are_a_pipe(model: Path, outside: Path) -> None:
    (model / "generation_config.json").unlink()
    os.mkfifo(model / "generation_config.json")


@refused
def a_config_without_an_end(model: Path, outside: Path) -> None:
    replace_by_link(model / "config.json", "/dev/zero")


@refused
def a_link_to_a_secret(model: Path, outside: Path) -> None:
    replace_by_link(model / "chat_template.jinja", outside / "secret.json")


@refused
def a_relative_link_out(model: Path, outside: Path) -> None:
    replace_by_link(model / "tokenizer.json", f"../{outside.name}/secret.json")


@refused
def a_link_to_itself(model: Path, outside: Path) -> None:
    replace_by_link(model / "generation_config.json", "generation_config.json")


@refused
def weights_that_are_a_link_out(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    replace_by_link(weights(model), outside / "other.safetensors")


@refused
def a_shard_above(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    shard(model, f"../{outside.name}/other.safetensors")
    weights(model).unlink()


@refused
def a_shard_by_an_absolute_path(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    shard(model, str(outside / "other.safetensors"))


@refused
def a_shard_that_is_a_link_out(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    (model / "part.safetensors").symlink_to(outside / "other.safetensors")
    shard(model, "part.safetensors")


@refused
def a_shard_of_another_kind(model: Path, outside: Path) -> None:
    (outside / "other.safetensors").write_bytes(weights(model).read_bytes())
    (model / "part.bin").symlink_to(outside / "other.safetensors")
    shard(model, "part.bin")


@refused
def an_index_of_millions_of_lists(model: Path, outside: Path) -> None:
    index = {"metadata": {"x": [[]] * 5_000_000}, "weight_map": {}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


@harmless
def files_that_nobody_reads(model: Path, outside: Path) -> None:
    (model / "notes.txt").symlink_to(outside / "none.txt")
    (model / "logs.json").mkdir()


@refused
def a_shard_that_is_the_directory(model: Path, outside: Path) -> None:
    shard(model, ".")


@refused
def a_shard_with_a_nul(model: Path, outside: Path) -> None:
    shard(model, "part\0.safetensors")


@refused
def a_shard_that_is_a_number(model: Path, outside: Path) -> None:
    shard(model, {"a": 1})


@refused
def an_index_of_a_list(model: Path, outside: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": []}')


# ---- weights


@refused
def only_pickled_weights(model: Path, outside: Path) -> None:
    weights(model).unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(outside)))


@refused
def pickled_weights_under_another_name(model: Path, outside: Path) -> None:
    weights(model).write_bytes(pickle.dumps(Bomb(outside)))


@refused
def a_header_beyond_the_file(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    raw = json.dumps(head).encode()
    write(weights(model), raw, data, length=len(raw) + len(data) + 1000)


@refused
def a_header_of_all_memory(model: Path, outside: Path) -> None:
    write(weights(model), b"{}", b"", length=(1 << 63) - 1)


@refused
def a_header_of_a_million_tensors(model: Path, outside: Path) -> None:
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    head = {f"model.layers.0.x{n}": nothing for n in range(900_000)}
    write(weights(model), json.dumps(head).encode(), b"")


@refused
def a_header_that_is_not_json(model: Path, outside: Path) -> None:
    write(weights(model), b"not json", b"")


@refused
def a_header_nested_beyond_the_stack(model: Path, outside: Path) -> None:
    write(weights(model), b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"")


@refused
def an_empty_file_of_weights(model: Path, outside: Path) -> None:
    weights(model).write_bytes(b"")


@refused
def weights_cut_short(model: Path, outside: Path) -> None:
    raw = weights(model).read_bytes()
    weights(model).write_bytes(raw[: len(raw) // 2])


@refused
def weights_with_more_behind_them(model: Path, outside: Path) -> None:
    with weights(model).open("ab") as file:
        file.write(b"more" * 100)


@refused
def tensors_that_overlap(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    names = [name for name in head if name != "__metadata__"]
    by_shape: dict[str, str] = {}
    for name in names:
        shape = str(head[name]["shape"])
        if shape in by_shape:
            head[name]["data_offsets"] = head[by_shape[shape]]["data_offsets"]
            break
        by_shape[shape] = name
    write(weights(model), json.dumps(head).encode(), data)


@refused
def a_tensor_declared_twice(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    name = first_name(head)
    raw = json.dumps(head)[:-1] + f", {json.dumps(name)}: {json.dumps(head[name])}}}"
    write(weights(model), raw.encode(), data)


@refused
def a_tensor_with_a_huge_shape(model: Path, outside: Path) -> None:
    change_tensor(model, shape=[1 << 40, 1 << 20])


@refused
def a_shape_that_overflows(model: Path, outside: Path) -> None:
    change_tensor(model, shape=[1 << 62, 1 << 62, 4])


@refused
def a_tensor_that_ends_before_it_begins(model: Path, outside: Path) -> None:
    change_tensor(model, data_offsets=[1000, 10])


@refused
def a_tensor_outside_the_file(model: Path, outside: Path) -> None:
    change_tensor(model, data_offsets=[1 << 50, (1 << 50) + 100])


@refused
def a_dtype_that_does_not_exist(model: Path, outside: Path) -> None:
    change_tensor(model, dtype="PICKLE")


@refused
def a_tensor_missing(model: Path, outside: Path) -> None:
    head, data = header(weights(model))
    name = next(n for n in head if n.endswith("up_proj.weight"))
    head["model.layers.0.mlp.renamed.weight"] = head.pop(name)
    write(weights(model), json.dumps(head).encode(), data)


@refused
def one_tensor_in_two_shards(model: Path, outside: Path) -> None:
    (model / "a.safetensors").write_bytes(weights(model).read_bytes())
    (model / "b.safetensors").write_bytes(weights(model).read_bytes())
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


# ---- tokenizers and chat templates


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
    data = json.loads((model / "tokenizer.json").read_text())
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
    data = json.loads((model / "tokenizer.json").read_text())
    data["added_tokens"].append(data["added_tokens"][-1] | {"id": 5_000_000, "content": "Hi"})
    (model / "tokenizer.json").write_text(json.dumps(data))


@refused
def a_tokenizer_that_is_pickled(model: Path, outside: Path) -> None:
    (model / "tokenizer.json").write_bytes(pickle.dumps(Bomb(outside)))


@refused
def no_tokenizer(model: Path, outside: Path) -> None:
    (model / "tokenizer.json").unlink()


def template(text: str) -> Change:
    def change(model: Path, outside: Path) -> None:
        filled = text.replace("SENTINEL", str(outside / "sentinel"))
        (model / "chat_template.jinja").write_text(filled)

    return change


REFUSED |= {
    "a_template_that_loops": template("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3),
    "a_template_of_a_giant_string": template("{{ 'x' * 4000000000 }}"),
    "a_template_that_escapes": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a_template_that_runs_a_command": template(
        "{{ cycler.__init__.__globals__.os.system('touch SENTINEL') }}"
    ),
    "a_template_that_includes": template("{% include '/etc/passwd' %}"),
    "a_template_that_imports": template("{% import 'os' as os %}{{ os.system('touch SENTINEL') }}"),
    "a_template_of_a_megabyte": template("{# " + "x" * (1 << 21) + " #}"),
}


@refused
def another_template_by_a_link(model: Path, outside: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").symlink_to(outside / "secret.json")


# ---- generation settings


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
