"""Loading onto several places: which ones, what is read again, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d3cli.base.errors import NotEnoughMemoryError, UsageError
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.files.lazy_weights import LazyTensor
from d3cli.files.names import find_model
from d3cli.files.safetensors import Description, describe_directory
from d3cli.model import rooms
from d3cli.model.checkpoint import open_checkpoint
from d3cli.model.held_weights import HeldWeights
from d3cli.model.load import load_model
from d3cli.model.load_plan import ALONE, check_model
from d3cli.model.memory import MemoryNeed, predict_memory
from d3cli.model.model import LoadedModel
from d3cli.model.placement import Placement, Room
from tests.conftest import BUILTIN_PATH, D3, check
from tests.decode.replies import greedy, ids
from tests.families import tiny
from tests.gguf_models import write_gguf
from tests.pretended import PretendedGPUs

PROMPT = [5, 17, 200, 31, 7, 90, 44, 12, 101, 6]


def need_of(model: Description, **lengths: int) -> tuple[MemoryNeed, int]:
    """What a model needs in float32 on a CPU, and how much of that are its layers."""
    plan = check_model(model, dtype="float32", device="cpu")
    layers = sum(HeldWeights(model, plan.config, plan.kernels).by_layer)
    return predict_memory(model, dtype=torch.float32, **lengths), layers


def too_little_for(model: Description) -> dict[str, int]:
    """A limit with which about half of the layers do not fit."""
    need, layers = need_of(model)
    return {"cpu": need.total - layers // 2}


@pytest.fixture
def builtin() -> Description:
    return describe_directory("demo", BUILTIN_PATH)


@torch.inference_mode()
def logits(model: LoadedModel) -> Tensor:
    token_ids = torch.tensor([PROMPT], device=model.device)
    return model.logits(model.hidden_states(token_ids)).cpu()


def test_layers_on_the_disk_are_read_when_they_run(
    builtin: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[int | None] = Counter()
    read = LazyTensor.read

    def counted(self: LazyTensor) -> Any:
        reads[self._info.layer] += 1
        return read(self)

    monkeypatch.setattr(LazyTensor, "read", counted)
    placements: list[Placement] = []
    limits = too_little_for(builtin)
    model = load_model(dtype="float32", max_memory=limits, on_placement=placements.append)
    (placement,) = placements
    assert model.placement == placement
    stored = placement.layers_in("disk")
    assert 0 < len(stored) < model.num_layers
    assert placement.bytes_in("cpu") <= limits["cpu"]
    expected = logits(load_model(dtype="float32", device="cpu"))
    for dropped in (set(), {stored[0], stored[-1]}):
        reads.clear()
        found = model.hidden_states(
            torch.tensor([PROMPT]), limits={str(layer): 0 for layer in dropped}
        )
        if not dropped:
            torch.testing.assert_close(model.logits(found), expected, atol=1e-4, rtol=0)
        weights = len(list(model.gate.layers[0].parameters()))
        assert reads == dict.fromkeys(set(stored) - dropped, weights)


def test_a_gguf_file_is_unpacked_again_when_a_layer_runs(tmp_path: Path) -> None:
    for name in ("llama", "mixtral"):
        path = write_gguf(tmp_path / f"{name}.gguf", name, "Q8_0").path
        description = open_checkpoint(find_model(str(path))).description
        model = load_model(str(path), dtype="float32", max_memory=too_little_for(description))
        assert model.placement is not None
        assert model.placement.layers_in("disk")
        expected = logits(load_model(str(path), dtype="float32", device="cpu"))
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


def test_a_model_on_two_gpus_in_memory_and_on_the_disk_writes_the_same(
    builtin: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    need, layers = need_of(builtin)
    one = (layers + need.kv_cache) // 16
    places = (
        [Room("cuda:0", need.total - layers), Room("cuda:1", need.workspace + 3 * one)],
        [Room("cpu", layers // 5), Room("disk", None)],
    )
    monkeypatch.setattr("d3cli.model.load_plan.rooms_here", lambda *_, **__: places)
    schedule = DepthSchedule(16, 0.9, 2, 4, 4, ("9", "7", "11", "5", "8"))
    expected = greedy(
        Engine(load_model(dtype="float32", device="cpu")), PROMPT, schedule, max_tokens=12
    )
    with PretendedGPUs():
        model = load_model(dtype="float32", max_memory={"cpu": 1})
        found = greedy(Engine(model), PROMPT, schedule, max_tokens=12)
        assert ids(found) == ids(expected)
    assert model.placement is not None
    assert model.placement.places == ("cuda:0", "cuda:1", "cpu", "disk")


def test_the_same_memory_on_one_device_splits_nothing(builtin: Description) -> None:
    need, _ = need_of(builtin)
    plan = check_model(builtin, dtype="float32", max_memory={"cpu": need.total})
    assert plan.placement is None
    assert plan.kernels == check_model(builtin, dtype="float32", device="cpu").kernels


def test_ranks_and_limits_exclude_each_other(builtin: Description) -> None:
    with pytest.raises(UsageError, match="torchrun has several"):
        check_model(builtin, ranks=ALONE, max_memory={"cpu": 1 << 30})


def test_experts_in_separate_tensors_cannot_lie_on_the_disk(tmp_path: Path) -> None:
    tiny("mixtral").gated.causal_lm.save_pretrained(tmp_path)
    model = describe_directory("mixtral", tmp_path)
    with pytest.raises(NotEnoughMemoryError, match="cannot be spread"):
        check_model(model, dtype="float32", max_memory=too_little_for(model))


def test_rooms_are_what_is_free_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda:0": 50, "cuda:1": 70, "cpu": 90}
    monkeypatch.setattr(rooms, "available_memory", lambda device: free[str(device)])
    assert rooms.rooms_here({"cpu": 100}) == ([Room("cpu", 90)], [Room("disk", None)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    names = rooms.place_names({"1": 60, "cuda:0": 80, "disk": 5}, "auto")
    assert names == {"cuda:1": 60, "cuda:0": 80, "disk": 5}
    gpus = [Room("cuda:0", 40), Room("cuda:1", 60)]
    assert rooms.rooms_here(names, beside=10) == (gpus, [Room("cpu", 90), Room("disk", 5)])
    forced = rooms.rooms_here(names, force=True)[0]
    assert [room.free for room in forced] == [80, 60]
    without = rooms.rooms_here({"cuda:0": 0, "cuda:1": 0})
    assert without == ([Room("cpu", 90)], [Room("disk", None)])
    with pytest.raises(UsageError, match="names GPU 2"):
        rooms.place_names({"2": 60}, "auto")


def test_a_model_too_large_for_a_gpu_is_placed_unasked(
    builtin: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    need, layers = need_of(builtin)
    free = {"cuda:0": need.total - layers // 2, "cpu": need.total}
    monkeypatch.setattr(rooms, "available_memory", lambda device: free[str(device)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    placement = check_model(builtin, dtype="float32").placement
    assert placement is not None
    assert placement.places == ("cuda:0", "cpu")
    free["cuda:0"] = need.total
    plan = check_model(builtin, dtype="float32")
    assert (plan.placement, str(plan.kernels.form.device)) == (None, "cuda:0")


def test_the_command_line_says_where_layers_lie_and_writes_the_same(
    d3: D3, builtin: Description
) -> None:
    need, layers = need_of(builtin, prompt_tokens=2, reply_tokens=8)
    limit = f"cpu={need.total - layers // 2}B"
    command = ("generate", "Hello.", "--dtype", "float32", "--max-tokens", "8", "--alpha", "off")
    split, whole = d3(*command, "--max-memory", limit), d3(*command)
    assert (split.code, split.out) == (0, whole.out), split
    assert "placed on cpu: embeddings, LM head, layers 0 to" in split.err
    assert "placed on disk: layers" in split.err
    assert ", mapped from the model's file and read again for each pass (" in split.err
    assert "placed on" not in whole.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--max-memory", "7=1GB"), 2, "--max-memory names GPU 7, which is not here"),
        (("--max-memory", "cuda:0=1GB"), 2, "--max-memory names GPU 0, which is not here"),
        (("--max-memory", "tpu=1GB"), 2, '--max-memory names "tpu"'),
        (("--max-memory", "cpu"), 2, '--max-memory has the part "cpu"'),
        (("--max-memory", "cpu=1GB,cpu=2GB"), 2, '--max-memory has the part "cpu=2GB"'),
        (("--max-memory", "cpu=all"), 2, '--max-memory has the part "cpu=all"'),
        (("--max-memory", "cpu=9MB"), 1, "its layers cannot be spread over what d3 may use: 9 MB"),
        (("--max-memory", "cpu=9MB"), 1, "--max-memory, if given, is a limit as well"),
        (
            ("--max-memory", "cpu=9MB", "--quantization", "int4"),
            1,
            "weights in fewer bits are made while loading and cannot be split",
        ),
        (
            ("--max-memory", "cpu=9GB", "--device", "cpu"),
            2,
            '--max-memory is for several places, and the device is "cpu"',
        ),
        (
            ("--max-memory", "cpu=9GB", "--alpha", "0.9", "--units", "plane"),
            2,
            "--units plane drops the low planes of nested weights, which --max-memory excludes",
        ),
    ],
)
def test_bad_limits_are_one_clear_error(
    d3: D3, arguments: tuple[str, ...], code: int, message: str
) -> None:
    check(d3("generate", "Hello.", *arguments), code, message)
