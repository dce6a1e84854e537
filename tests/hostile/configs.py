"""Configs that name code or ask for absurd sizes."""

import json
from pathlib import Path
from typing import Any

from tests.hostile.registry import (
    REFUSED,
    Change,
    code,
    edit,
    harmless,
    header,
    refused,
    weights,
    write,
)


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
