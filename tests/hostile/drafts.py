"""Hostile draft models, for ``--draft-model``. Each is a change to a good one.

Drafts change no reply, so those that only look hostile must leave it as it is.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.copies import change_a_tensor
from tests.gguf_models import write_gguf
from tests.hostile.registry import REFUSED, Change, code, edit, in_holes, with_template

REFUSED_DRAFTS: dict[str, Change] = {}
HARMLESS_DRAFTS: dict[str, Change] = {}

# These are hostile in any place. A draft model is loaded before the model.
REFUSED_DRAFTS |= {
    name: REFUSED[name]
    for name in (
        "code_for_a_type_of_its_own",
        "an_attention_kernel",
        "a_million_layers",
        "a_config_that_is_a_pipe",
        "a_config_without_an_end",
        "only_pickled_weights",
        "weights_cut_short",
        "weights_that_are_a_link_out",
        "a_shard_above",
        "a_tokenizer_that_doubles_and_doubles",
        "a_tokenizer_whose_rust_panics",
        "a_link_to_a_secret",
    )
}


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Change:
    """Another tokenizer.json."""

    def write(model: Path, _: Path) -> None:
        data = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
        change(data)
        (model / "tokenizer.json").write_text(json.dumps(data))

    return write


def exchanged(data: dict[str, Any]) -> None:
    """Two tokens have each other's number."""
    vocabulary = data["model"]["vocab"]
    one, two = list(vocabulary)[500:502]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


def one_more(data: dict[str, Any]) -> None:
    """A token that the model does not have, at the last number that the draft model has."""
    vocabulary = data["model"]["vocab"]
    last = next(token for token, id_ in vocabulary.items() if id_ == 2047)
    data["model"]["merges"] = [merge for merge in data["model"]["merges"] if "".join(merge) != last]
    del vocabulary[last]
    data["added_tokens"].append(data["added_tokens"][-1] | {"id": 2047, "content": "<|evil|>"})


def values(change: Callable[[Any], Any]) -> Change:
    """Other numbers in one tensor of the weights."""
    return lambda model, _: change_a_tensor(model, change)


def in_gguf(edit_bytes: Callable[[bytes], bytes], **settings: Any) -> Change:
    """A GGUF file in place of the directory."""

    def write(model: Path, _: Path) -> None:
        shutil.rmtree(model)
        written = write_gguf(model.with_suffix(".gguf"), kind="Q8_0", **settings)
        model.write_bytes(edit_bytes(written.path.read_bytes()))

    return write


REFUSED_DRAFTS |= {
    "tokens_with_each_other_s_numbers": tokenizer(exchanged),
    "a_token_that_the_model_lacks": tokenizer(one_more),
    "a_tokenizer_without_tokens": tokenizer(lambda data: data["model"].update(vocab={}, merges=[])),
    "a_context_of_one_token": lambda model, _: edit(
        model / "config.json", max_position_embeddings=1
    ),
    "weights_of_a_terabyte_of_holes": lambda model, _: in_holes(model, 90_000_000),
    "a_gguf_that_is_cut_short": in_gguf(lambda data: data[:-4096]),
    "a_gguf_whose_header_is_cut": in_gguf(lambda data: data[:3000]),
    "a_gguf_of_another_vocabulary": in_gguf(lambda data: data),
    "a_gguf_with_a_bomb_in_its_template": in_gguf(
        lambda data: data, metadata={"tokenizer.chat_template": "{{ 'x' * 4000000000 }}"}
    ),
}


def the_model_itself(model: Path, outside: Path) -> None:
    from tests.conftest import BUILTIN_PATH

    shutil.rmtree(model)
    model.symlink_to(BUILTIN_PATH)


REFUSED_DRAFTS["the_model_itself"] = the_model_itself


def code_for_a_known_type(model: Path, outside: Path) -> None:
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(model / "config.json", auto_map=names)
    (model / "evil.py").write_text(code(outside))


HARMLESS_DRAFTS |= {
    "code_for_a_known_type": code_for_a_known_type,
    "weights_without_numbers": values(lambda tensor: tensor * torch.nan),
    "weights_of_nothing": values(torch.zeros_like),
    "weights_beyond_all": values(lambda tensor: torch.full_like(tensor, 3e38)),
    "a_template_that_loops": with_template("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3),
    "a_template_that_runs_a_command": with_template(
        "{{ cycler.__init__.__globals__.os.system('touch SENTINEL') }}"
    ),
    "ends_that_are_every_token": lambda model, _: edit(
        model / "generation_config.json", eos_token_id=[*range(2048)]
    ),
    "settings_of_its_own": lambda model, _: edit(
        model / "generation_config.json",
        do_sample=True,
        temperature=1e6,
        bad_words_ids=[[n] for n in range(6, 2048)],
        forced_bos_token_id=5,
    ),
}
