"""Predicted memory, against what tensors take; and models that are refused."""

import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig

from d3cli.base import free_memory
from d3cli.base.amounts import readable_size
from d3cli.files.safetensors import describe_directory
from d3cli.kernels.float_linear import FloatLinear
from d3cli.kernels.process import KERNEL_CACHES, KERNELS_KEPT
from d3cli.kernels.products import PACKED, can_pack
from d3cli.model import memory
from d3cli.model.kv_cache import KVCache
from d3cli.model.load import load_model
from d3cli.model.memory import activations, kv_bytes_per_position, predict_memory
from tests.conftest import BUILTIN_PATH, D3, check
from tests.families import random_ids, some_families, tiny
from tests.forks import Forks

# In float32 the built-in model needs 180 MB, 17 MB of them for the KV cache.
FREE = 174 * 10**6


class Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        made = function(*arguments, **(options or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((arguments, options))}
        for storage in (tensor.untyped_storage() for tensor in _tensors(made)):
            if storage._cdata not in given | self._alive:  # otherwise it is a view
                self._alive.add(storage._cdata)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.most = max(self.most, self._now)
        return made

    def _free(self, storage: int, size: int) -> None:
        self._alive.discard(storage)
        self._now -= size


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@some_families
def test_a_prefill_allocates_what_is_predicted(name: str) -> None:
    """Beside the KV cache. ``scripts/measure_memory.py --check`` measures whole processes."""
    if name == "gemma2":
        pytest.xfail("its eager attention holds a matrix of scores, which is not predicted")
    model = tiny(name).gated
    cache = model.new_cache()
    with torch.inference_mode(), Allocated() as allocated:
        hidden = model.hidden_states(torch.tensor([random_ids(128)]), cache)
        model.logits(hidden[:, -1:])
    held = [cache.keys_and_values(index) for index in range(model.num_layers)]
    workspace = allocated.most - sum(keys.nbytes + values.nbytes for keys, values in held)
    predicted = activations(model.causal_lm.config, torch.float32, 128, 128)
    assert 0.4 * predicted < workspace < 1.1 * predicted


@some_families
def test_weights_and_cache_are_predicted_to_the_byte(name: str, tmp_path: Path) -> None:
    model = tiny(name).gated
    model.causal_lm.save_pretrained(tmp_path)
    need = predict_memory(
        describe_directory(name, tmp_path), dtype=torch.float32, prompt_tokens=9, reply_tokens=0
    )
    weights = sum(p.nbytes for p in model.causal_lm.parameters())
    table = model.causal_lm.get_input_embeddings().weight
    head = model.causal_lm.get_output_embeddings().weight
    if head is not table and head.shape == table.shape:
        weights -= table.nbytes  # stays mapped; only single rows of it are read
    assert need.weights == weights
    cache = KVCache.for_config(model.causal_lm.config)
    model.hidden_states(torch.tensor([random_ids(9)]), cache)
    cache.commit(9, full_depth=True)
    held = [cache.keys_and_values(index) for index in range(model.num_layers)]
    assert need.kv_cache == sum(keys.nbytes + values.nbytes for keys, values in held)


@pytest.mark.parametrize("kind", ["int8", "int4", "nested", "bnb-4bit", "bnb-8bit"])
def test_quantized_weights_are_predicted(kind: str) -> None:
    model = load_model(dtype="bfloat16", device="cpu", quantization=kind)
    need = predict_memory(
        describe_directory("demo", BUILTIN_PATH), dtype=torch.bfloat16, quantization=kind
    )
    embeddings = model.causal_lm.model.embed_tokens.weight.nbytes  # tied: they are also the head
    # On a processor with the kernel of bnb-4bit, its scales take 1/17 of the bytes, as predicted.
    # On others they take half as much.
    assert need.weights == pytest.approx(model.weight_bytes.total, rel=0.03)
    assert embeddings < need.weights


class TestRefusal:
    @pytest.fixture(autouse=True)
    def _little_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("d3cli.model.memory.available_memory", lambda device: FREE)
        monkeypatch.setattr(
            "d3cli.model.memory.CUDA_BUILD", 0
        )  # with it, nothing smaller would fit either

    def test_both_numbers_and_what_would_fit(self, d3: D3) -> None:
        result = d3("generate", "Hello.", "--dtype", "float32")
        check(result, 1, "the built-in model needs about")
        assert f"but only {readable_size(FREE)} are free here" in result.err
        assert "--dtype bfloat16 (" in result.err
        assert "or --max-tokens" in result.err or ", --max-tokens" in result.err
        assert "--force loads it anyway" in result.err

    def test_what_would_fit_fits(self, d3: D3) -> None:
        refused = d3("generate", "Hello.", "--dtype", "float32")
        assert refused.code == 1
        hint = refused.err.split("hint: ")[1]
        assert "--dtype bfloat16 (" in hint
        tokens = hint.split("--max-tokens ")[1].split(",")[0]
        fits = d3("generate", "Hello.", "--dtype", "float32", "--max-tokens", tokens)
        assert fits.code == 0, fits.err

    def test_force_loads_it_anyway(self, d3: D3) -> None:
        assert d3("generate", "Hello.", "--dtype", "float32").code == 1
        assert d3("generate", "Hello.", "--dtype", "float32", "--force").code == 0

    def test_the_library_refuses_too(self) -> None:
        with pytest.raises(memory.NotEnoughMemoryError, match="the built-in model needs about"):
            load_model(reply_tokens=10**6, dtype="float32")


def multiply_many_lengths(load_first: str) -> None:
    """In a child: multiplies more lengths than oneDNN may keep kernels for, then the first again.

    oneDNN says on stdout which kernels it creates.
    """
    for name in KERNEL_CACHES:  # an earlier test may have set it in the parent
        os.environ.pop(name, None)
    if load_first:
        load_model(threads=1, device="cpu")
    weight = torch.randn(64, 64, dtype=torch.bfloat16)
    packed = FloatLinear(weight, None, PACKED)
    with torch.inference_mode(), torch.backends.mkldnn.verbose(2):  # on creation
        for length in [*range(2, 3 + KERNELS_KEPT), 2]:
            print(f"length {length}", flush=True)
            torch.nn.functional.linear(torch.zeros(length, 64).bfloat16(), weight)
            packed(torch.zeros(length, 64).bfloat16())


@pytest.mark.skipif(
    not can_pack(torch.bfloat16, torch.device("cpu")), reason="no linears are packed here"
)
def test_kernels_for_prompts_of_many_lengths_are_not_all_kept(forks: Forks) -> None:
    """Each takes up to a megabyte. The control shows that oneDNN would keep them."""
    function = f"{__name__}.{multiply_many_lengths.__name__}"
    bounded, control = (forks.call(function, load_first) for load_first in ("yes", ""))
    for ended, created in ((bounded, 2), (control, 0)):
        assert ended.code == 0, ended.err
        _, first, *_, again = ended.out.split("length ")
        assert first.count("create:cache_miss") == 2
        assert again.count("create:cache_miss") == created


@pytest.mark.parametrize("command", [("generate", "Hello."), ("doctor",)])
def test_too_little_address_space_is_an_error_before_the_imports(
    d3: D3, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (900 << 20, -1))
    result = d3(*command)
    check(
        result, 1, "may use 944 MB of address space, but d3 needs 1,200 MB with the smallest model"
    )
    assert "model:" not in result.err


def test_the_limit_of_a_control_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def group(directory: Path, limit: str, used: int, cached: int, names: tuple[str, ...]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / names[0]).write_text(f"{limit}\n")
        (directory / names[1]).write_text(f"{used}\n")
        (directory / "memory.stat").write_text(f"anon 7\n{names[2]} {cached}\nshmem 0\n")

    def left(lines: str) -> list[int]:
        (tmp_path / "cgroup").write_text(lines)
        monkeypatch.setattr("d3cli.base.cgroups.OWN_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr("d3cli.base.cgroups.GROUPS", tmp_path / "fs")
        return sorted(free_memory._left_in_control_groups())

    second = ("memory.max", "memory.current", "inactive_file")
    group(tmp_path / "fs/user/app", "max", 5, 0, second)
    group(tmp_path / "fs/user", "1000", 600, 50, second)
    assert left("0::/user/app\n") == [450]
    group(tmp_path / "fs/user/app", "700", 650, 20, second)
    assert left("0::/user/app\n") == [70, 450]
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    group(tmp_path / "fs/memory/pod", "300", 100, 10, first)
    assert left("4:memory:/pod\n1:cpu:/\n") == [210]
    assert left("") == []


def test_kv_bytes_follow_the_shape() -> None:
    llama = LlamaConfig(
        hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32
    )
    assert kv_bytes_per_position(llama, torch.bfloat16) == 131072  # Llama 3 8B: 128 KiB a token
