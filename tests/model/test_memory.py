"""Memory foretold: against the weights, the cache and the peak of real processes; and refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from d3cli.files.safetensors import describe_directory
from d3cli.model import memory
from d3cli.model.kv_cache import KVCache
from d3cli.model.load import load_model
from d3cli.model.memory import kv_bytes_per_position, predict_memory
from tests.conftest import BUILTIN_PATH, D3, check
from tests.families import CONFIGS, random_ids, tiny

# Three shapes: wide layers, many narrow ones, and keys and values that outweigh the weights.
SHAPES = {
    "wide": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12},
    "deep": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 40},
    "cache": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
    },
}
CHILD = """
import json, sys
from pathlib import Path
import psutil, torch
from d3cli.decode.session import Engine
from d3cli.model.memory import predict_memory
from d3cli.model.load import load_model
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.stats import peak_memory
from d3cli.files.safetensors import describe_directory

path, dtype, quantization, prompt = sys.argv[1:]
options = {"quantization": quantization or None, "prompt_tokens": int(prompt), "reply_tokens": 4}
before = psutil.Process().memory_info().rss
need = predict_memory(
    describe_directory("m", Path(path)), dtype=getattr(torch, dtype), **options
)
model = load_model(path, dtype=dtype, threads=1, device="cpu", **options)
reply = Engine(model).stream_ids(
    [5] * int(prompt), schedule=model.schedule(0.9), sampling=SamplingParams(), max_tokens=4
)
list(reply)
print(json.dumps([before + need.total, peak_memory(torch.device("cpu")), before]))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    for name, shape in SHAPES.items():
        shutil.copytree(BUILTIN_PATH, root / name)
        config = LlamaConfig(**({"max_position_embeddings": 8192, "vocab_size": 4096} | shape))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model = model.to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        model.save_pretrained(root / name)
    yield {name: root / name for name in SHAPES}
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("shape", "dtype", "quantization", "prompt"),
    [
        ("wide", "bfloat16", "", 64),
        ("wide", "float32", "", 64),
        ("wide", "bfloat16", "bnb-4bit", 64),
        ("deep", "bfloat16", "", 64),
        ("cache", "bfloat16", "", 3000),
    ],
)
def test_the_peak_is_foretold(
    checkpoints: dict[str, Path], shape: str, dtype: str, quantization: str, prompt: int
) -> None:
    arguments = [str(checkpoints[shape]), dtype, quantization, str(prompt)]
    for _ in range(4):  # on a busy machine, a peak is now and then higher than need be
        child = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=300
        )
        assert child.returncode == 0, child.stderr
        predicted, peak, before = json.loads(child.stdout.splitlines()[-1])
        assert peak > before + 150e6  # else the test would only see what Python and torch take
        if predicted / peak > 0.9:
            break
    assert 0.9 < predicted / peak < 1.1


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_cache_are_foretold_to_the_byte(name: str, tmp_path: Path) -> None:
    model = tiny(name).gated
    model.causal_lm.save_pretrained(tmp_path)
    need = predict_memory(
        describe_directory(name, tmp_path), dtype=torch.float32, prompt_tokens=9, reply_tokens=0
    )
    weights = sum(p.nbytes for p in model.causal_lm.parameters())
    table = model.causal_lm.get_input_embeddings().weight
    head = model.causal_lm.get_output_embeddings().weight
    if head is not table and head.shape == table.shape:
        weights -= table.nbytes  # stays mapped, and single rows of it are read
    assert need.weights == weights
    cache = KVCache.for_config(model.causal_lm.config)
    model.hidden_states(torch.tensor([random_ids(9)]), cache)
    cache.commit(9, full_depth=True)
    held = [cache.keys_and_values(index) for index in range(model.num_layers)]
    assert need.kv_cache == sum(keys.nbytes + values.nbytes for keys, values in held)


@pytest.mark.parametrize("kind", ["bnb-4bit", "bnb-8bit"])
def test_quantized_weights_are_foretold(kind: str) -> None:
    model = load_model(dtype="bfloat16", device="cpu", quantization=kind)
    need = predict_memory(
        describe_directory("demo", BUILTIN_PATH), dtype=torch.bfloat16, quantization=kind
    )
    embeddings = model.causal_lm.model.embed_tokens.weight.nbytes  # tied: they are the head, too
    assert need.weights == pytest.approx(model.weight_bytes.total, rel=0.01)
    assert embeddings < need.weights


class TestRefusal:
    @pytest.fixture(autouse=True)
    def _little_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # In float32 the built-in model needs 180 MB, 17 MB of them for the KV cache.
        monkeypatch.setattr("d3cli.model.memory.available_memory", lambda device: 174 * 10**6)
        monkeypatch.setattr("d3cli.model.memory.CUDA_BUILD", 0)  # with it nothing smaller would fit

    def test_both_numbers_and_what_would_fit(self, d3: D3) -> None:
        result = d3("generate", "Hello.", "--dtype", "float32")
        check(result, 1, "the built-in model needs about")
        assert "and 174 MB are free here" in result.err
        assert "--dtype bfloat16 (" in result.err
        assert "or --max-tokens" in result.err or ", --max-tokens" in result.err
        assert "--force tries all the same" in result.err

    def test_what_would_fit_fits(self, d3: D3) -> None:
        refused = d3("generate", "Hello.", "--dtype", "float32")
        assert refused.code == 1
        hint = refused.err.split("hint: ")[1]
        assert "--dtype bfloat16 (" in hint
        tokens = hint.split("--max-tokens ")[1].split(",")[0]
        fits = d3("generate", "Hello.", "--dtype", "float32", "--max-tokens", tokens)
        assert fits.code == 0, fits.err

    def test_force_loads_it_all_the_same(self, d3: D3) -> None:
        assert d3("generate", "Hello.", "--dtype", "float32").code == 1
        assert d3("generate", "Hello.", "--dtype", "float32", "--force").code == 0

    def test_the_library_refuses_too(self) -> None:
        with pytest.raises(memory.NotEnoughMemoryError, match="the built-in model needs about"):
            load_model(reply_tokens=10**6, dtype="float32")


def test_prompts_of_many_lengths_leave_little_behind() -> None:
    code = """
import psutil
from d3cli import Engine, load_model
from d3cli.decode.sampling import SamplingParams
model, rest = load_model(threads=1, device="cpu"), {"sampling": SamplingParams(), "max_tokens": 1}
sizes = []
for first in (20, 60, 120):
    for length in range(first, first + 60):
        ids = list(range(5, 5 + length))
        list(Engine(model).stream_ids(ids, schedule=model.schedule("off"), **rest))
    sizes.append(psutil.Process().memory_info().rss)
print(sizes[2] - sizes[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert int(done.stdout) < 60 * 2**20  # 120 lengths; 190 MB where oneDNN keeps them all


@pytest.mark.parametrize("command", [("generate", "Hello."), ("doctor",)])
def test_too_little_address_space_for_the_imports_is_told_before_them(
    d3: D3, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (900 << 20, -1))
    result = d3(*command)
    check(
        result, 1, "may use 944 MB of address space, and d3 needs 1,200 MB with the smallest model"
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
        return sorted(memory._left_in_control_groups())

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
