"""A model over several processes: the same tokens, and one clear line where that cannot be."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from d3cli.base.errors import D3Error, ModelError, UsageError
from d3cli.base.launch import LAUNCHED, NUMBERS, Launch, launched
from d3cli.depth.families import FAMILIES
from d3cli.files.names import find_model
from d3cli.kernels.plan import Form
from d3cli.model.checkpoint import open_checkpoint
from d3cli.model.config import parse_config
from d3cli.model.load_plan import check_model, form_for
from d3cli.model.memory import _predict
from d3cli.model.ranks import follower
from d3cli.model.ranks.channel import Channel
from d3cli.model.ranks.network import notice_silence
from d3cli.model.ranks.weights import splitting
from tests.families import CONFIGS, FAMILY_NAMES, VOCAB, random_model, word_tokenizer

ROOT = Path(__file__).parent.parent.parent.parent
TWO, THREE = Launch(0, 2, 0, 2), Launch(0, 3, 0, 3)
# transformers has no plan for them.
WITHOUT_PLAN = ("stablelm", "gpt_bigcode", "gpt2", "opt")


def save(name: str, path: Path, **changes: object) -> Path:
    config = CONFIGS[name]
    if changes:
        config = type(config)(**config.to_dict() | changes)
    random_model(config, FAMILIES[config.model_type].attention or "eager").save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


def check(path: Path, launch: Launch, **options: object) -> None:
    files = find_model(str(path))
    check_model(open_checkpoint(files).description, dtype="float32", ranks=launch, **options)


@pytest.mark.slow
def test_two_ranks_compute_what_one_process_computes(tmp_path: Path) -> None:
    models, results = tmp_path / "models", tmp_path / "results.json"
    with_plan = [name for name in FAMILY_NAMES if CONFIGS[name].model_type not in WITHOUT_PLAN]
    # Rotary tables are not split, so their variants would show nothing.
    names = [name for name in with_plan if not name.endswith(("rope", "yarn"))]
    assert {CONFIGS[name].model_type for name in names} == set(FAMILIES) - set(WITHOUT_PLAN)
    for name in names:
        changes = {"use_qk_norm": False} if name == "cohere" else {}
        save(name, models / name, **changes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.model.ranks.pair", models, results]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(results.read_text())
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert set(found) == {"damaged", *names}


def test_every_family_has_a_plan_or_is_refused_by_name(tmp_path: Path) -> None:
    with_plan = {
        kind.model_type for kind in CONFIGS.values() if getattr(kind, "base_model_tp_plan", None)
    }
    assert set(FAMILIES) - with_plan == set(WITHOUT_PLAN)
    for kind in WITHOUT_PLAN:
        path = save("opt-post-norm" if kind == "opt" else kind, tmp_path / kind)
        with pytest.raises(ModelError, match=f'models of the type "{kind}" cannot be split'):
            check(path, TWO)
    with pytest.raises(ModelError, match="does not split its norms"):
        check(save("cohere", tmp_path / "cohere"), TWO)


def test_ranks_must_divide_the_heads(tmp_path: Path) -> None:
    path = save("llama", tmp_path / "llama")
    check(path, TWO)
    with pytest.raises(
        UsageError, match="4 attention heads and 2 of keys and values, which 3"
    ) as error:
        check(path, THREE)
    assert error.value.hint == "start 2 ranks"
    check(save("phi3", tmp_path / "phi3"), THREE)  # each rank has all heads


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    path = save("llama", tmp_path / "llama")
    with pytest.raises(UsageError, match="quantization does not work with several ranks"):
        check(path, TWO, quantization="int4")


def test_decay_does_not_nest_split_weights(tmp_path: Path) -> None:
    files = find_model(
        str(save("llama", tmp_path / "llama", hidden_size=128, intermediate_size=256))
    )
    description = open_checkpoint(files).description
    options = {"for_decay": True, "dtype": "bfloat16", "device": "cpu"}
    assert check_model(description, **options).kernels.form.quantization == "nested"
    assert check_model(description, ranks=TWO, **options).kernels.form.quantization is None


def test_ranks_on_cpus_do_not_need_a_torch_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda: torch.device("cuda"))
    form = Form(torch.float32, torch.device("cpu"))
    with splitting(form) as options:
        assert options == {}
    with splitting(replace(form, ranks=2)) as options:
        assert options["distributed_config"].tp_size == 2
        assert torch._C._get_accelerator() == torch.device("cpu")
    assert torch._C._get_accelerator() == torch.device("cuda")


def test_other_devices_are_refused() -> None:
    with pytest.raises(UsageError):
        form_for({"device": "cuda:1", "ranks": TWO})
    assert form_for({"device": "cpu", "dtype": "float32", "ranks": TWO}).ranks == 2


def test_a_model_that_is_another_one_elsewhere_is_refused(tmp_path: Path) -> None:
    path = save("llama", tmp_path / "llama")
    request = {"model": str(path), "revision": None, "dtype": "float32", "threads": 1}
    request |= {"options": {}, "fingerprint": "another"}
    with pytest.raises(ModelError, match="another model here than on rank 0"):
        follower._find(request, TWO)
    request["fingerprint"] = find_model(str(path)).fingerprint()
    assert follower._find(request, TWO).files.path == path


def test_without_torchrun_there_are_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAUNCHED, raising=False)
    for name, value in zip(NUMBERS, ("1", "4", "1", "2"), strict=True):
        monkeypatch.setenv(name, value)
    assert launched() is None
    monkeypatch.setenv(LAUNCHED, "none")
    assert launched() == Launch(1, 4, 1, 2)
    monkeypatch.setenv("RANK", "x")
    assert launched() is None


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.TCPStore]:
    """The store that torchrun would host."""
    hosted = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(hosted.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for name, value in zip(NUMBERS, ("0", "2", "0", "2"), strict=True):
        monkeypatch.setenv(name, value)
    yield hosted


def test_other_versions_are_refused(store: dist.TCPStore) -> None:
    first, second = Channel(TWO, "0.2.0"), Channel(replace(TWO, rank=1, rank_here=1), "0.1.9")
    second.say_hello()
    with pytest.raises(D3Error, match=r"rank 1 has d3 0\.1\.9, and rank 0 has d3 0\.2\.0"):
        first.begin("gloo")
    first._versions = second._versions | {"backend": "nccl"}
    with pytest.raises(D3Error, match="rank 1 has backend gloo, and rank 0 has backend nccl"):
        first.begin("cpu:gloo,cuda:nccl")


def test_ranks_that_are_not_needed_end(store: dist.TCPStore) -> None:
    first, second = Channel(TWO, "0.2.0"), Channel(replace(TWO, rank=1, rank_here=1), "0.2.0")
    second.say_hello()
    first.dismiss(in_step=True)
    assert second.wait_to_begin() is False


def test_a_port_in_use_is_one_line(store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(D3Error, match="rank 0 cannot meet the others") as error:
            Channel(TWO, "0.2.0")
    assert "--master-port" in error.value.hint


def test_connections_ask_whether_a_silent_machine_is_there() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        assert not one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        notice_silence()
        for end in (one, other):
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        one.sendall(b"still open")
        assert other.recv(16) == b"still open"


@pytest.mark.parametrize(("name", "all_heads"), [("llama", False), ("olmo2", True)])
def test_a_rank_needs_its_share_of_the_memory(name: str, all_heads: bool, tmp_path: Path) -> None:
    description = open_checkpoint(find_model(str(save(name, tmp_path / name)))).description
    config = parse_config(description)
    alone, split = (
        _predict(description, config, Form(torch.float16, torch.device("cpu"), ranks=ranks), 64, 16)
        for ranks in (1, 2)
    )
    whole = (VOCAB + 1) * config.hidden_size * 2  # the embeddings and the last norm
    assert split.weights == whole + (alone.weights - whole) // 2
    assert split.kv_cache == alone.kv_cache // (1 if all_heads else 2)
