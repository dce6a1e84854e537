"""``d3 doctor``: its facts and its arithmetic, but no measured speed."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from d3cli.base.errors import ModelError
from d3cli.cli.doctor.command import CHOICES, LARGE, _nested
from d3cli.cli.doctor.large_model import large_model
from d3cli.cli.doctor.probe import (
    expected_speeds,
    kernels,
    read_bandwidth,
    seconds_per_weight,
)
from d3cli.cli.doctor.shapes import SHAPES, forms
from d3cli.depth.schedule import DepthSchedule
from d3cli.kernels import choices
from d3cli.kernels.int4_linear import int4_bytes
from d3cli.kernels.measure import Measured
from d3cli.kernels.measure_packing import MeasuredPacking
from d3cli.kernels.measure_small import UNLIMITED, MeasuredHead, MeasuredRows
from d3cli.kernels.products import Product, Products
from d3cli.model.load import load_model
from d3cli.model.origin import Origin
from d3cli.model.placement import Room
from tests.conftest import D3

CPU = torch.device("cpu")
ROWS = {"int8": 4, "int4": UNLIMITED}


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d3cli.cli.doctor.probe.PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(
        "d3cli.cli.doctor.probe.read_bandwidth", lambda device: read_bandwidth(device, 0.01)
    )


def test_what_is_examined(d3: D3) -> None:
    result = d3("doctor")
    assert result.code == 0, result.err
    rows = dict(row.split("\t", 1) for row in result.out.splitlines() if row)
    # What is installed may leave out the build (+cpu, +cu130) that torch itself names.
    assert rows["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert rows["built-in model"].startswith("answers")
    assert "free of" in rows["memory"]
    assert "GB/s" in rows["read bandwidth"]
    assert result.out.count("tok/s") == 3 * 3 * 2
    _, _, large = result.out.partition("\t".join(LARGE) + "\n")
    names = [row.split("\t")[:2] for row in large.splitlines()]
    assert names == [[SHAPES[-1].name, weights] for weights in ("bfloat16", "4-bit", "nested")]


def test_json(d3: D3) -> None:
    found = json.loads(d3("doctor", "--json").out)
    assert found["schema"] == 1
    assert found["builtin_model"] == found["builtin_model"] | {"answers": True, "problem": None}
    assert found["kernels"] == kernels(torch.device(found["read_bandwidth"]["device"]))
    assert found["read_bandwidth"]["bytes_per_second"] > 0
    assert [row["model"] for row in found["expected"][::3]] == [shape.name for shape in SHAPES]
    for row in found["expected"]:
        assert 1 < row["depth_0_6"] / row["full_depth"] < 1 / 0.6
    assert [fit["weights"] for fit in found["large_model"]] == ["bfloat16", "4-bit", "nested"]


def test_a_70b_model_on_several_gpus() -> None:
    memory = Room("cpu", 60 * 10**9)
    gpus = [Room(f"cuda:{index}", 78 * 10**9) for index in range(4)]
    in_16_bits, in_4_bits = large_model(gpus, memory)
    weights = 2 * 70.55e9  # parameters of Llama 3.3 70B
    assert in_16_bits.need_bytes == pytest.approx(weights, rel=0.02)
    assert [place.name for place in in_16_bits.places] == ["cuda:0", "cuda:1"]
    assert sum((place.layers for place in in_16_bits.places), ()) == tuple(range(80))
    assert in_16_bits.moved_bytes == 0
    assert [place.name for place in in_4_bits.places] == ["cuda:0"]


def test_a_70b_model_on_too_small_a_gpu() -> None:
    in_16_bits, in_4_bits = large_model([Room("cuda:0", 24 * 10**9)], Room("cpu", 60 * 10**9))
    gpu, memory, disk = in_16_bits.places
    assert (gpu.name, memory.name, disk.name) == ("cuda:0", "cpu", "disk")
    assert memory.need_bytes <= 60 * 10**9
    assert in_16_bits.moved_bytes == memory.need_bytes + disk.need_bytes
    assert in_4_bits.places == ()  # bitsandbytes' weights stay on the GPU
    assert in_4_bits.summary[0].startswith("does not fit: the model needs about")


def test_a_70b_model_on_the_cpu() -> None:
    in_16_bits, *in_fewer = large_model([], Room("cpu", 16 * 10**9))
    assert [place.name for place in in_16_bits.places] == ["cpu", "disk"]
    assert "mapped from the model's file and read again for each pass" in in_16_bits.summary[1]
    assert not any("moved" in line for line in in_16_bits.summary)
    assert [fit.places for fit in in_fewer] == [(), ()]


def test_a_built_in_model_that_fails_is_reported(d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ModelError("its weights are gone")

    monkeypatch.setattr("d3cli.model.load.load_model", broken)
    result = d3("doctor")
    assert result.code == 1
    assert "does not work: its weights are gone" in result.out
    assert result.err.count("error: the built-in model does not work") == 1


def test_a_bad_calibration_of_the_built_in_model_is_not_an_error(
    d3: D3, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = DepthSchedule(16, 0.5, 0, 0, 1, tuple(map(str, range(15))))
    monkeypatch.setattr(
        "d3cli.model.load.load_model",
        lambda *words, **settings: replace(
            load_model(*words, **settings), origin=Origin(shipped=bad)
        ),
    )
    assert d3("doctor").code == 0


def test_the_bytes_are_those_of_the_model() -> None:
    shape = SHAPES[0]
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        from transformers import LlamaForCausalLM

        weights = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    assert shape.bytes_read(1, forms(CPU)["bfloat16"]) == pytest.approx(2 * weights, rel=1e-3)
    (row, *_) = expected_speeds(2.0 * weights, 0, CPU)
    assert row.full_depth == pytest.approx(1, rel=1e-3)
    assert not row.fits


def test_slow_kernels_bound_the_speeds() -> None:
    """Where computing takes longer than reading, fewer bytes alone gain nothing."""
    shape = SHAPES[0]
    by_reading = expected_speeds(1e12, 0, CPU)
    by_kernels = expected_speeds(1e12, 0, CPU, {"4-bit": 1e-9})
    read, computed = ({row.weights: row for row in rows[:3]} for rows in (by_reading, by_kernels))
    assert computed["bfloat16"] == read["bfloat16"]
    assert computed["4-bit"].full_depth == pytest.approx(1e9 / shape.layer_weights, rel=0.01)
    assert computed["4-bit"].depth_0_6 == pytest.approx(1e9 / 0.6 / shape.layer_weights, rel=0.01)
    assert seconds_per_weight(None) == {}


def test_the_4_bit_bytes_are_those_of_a_loaded_model() -> None:
    model = load_model(quantization="int4", dtype="bfloat16", device="cpu")
    layer = model.weight_bytes.layers[0]
    weights = 4 * 128 * 128 + 3 * 128 * 384
    assert layer.attn + layer.mlp == pytest.approx(int4_bytes(weights, 1, torch.bfloat16), rel=0.02)


def test_nested_planes_have_their_time_and_bytes(d3: D3) -> None:
    found = json.loads(d3("doctor", "--json").out)
    times = found["nested_times"]
    assert 0 < times["high"] < times["both"]
    for bf16, _, nested in zip(*[iter(found["expected"])] * 3, strict=True):
        assert nested["weights"] == "nested"
        assert 0.5 < nested["size_bytes"] / bf16["size_bytes"] < 0.6
    assert "slower" not in _nested({"both": 0.9, "high": 0.5})
    assert _nested({"both": 1.25, "high": 0.7}).endswith("slower than bfloat16 where both are read")


def test_the_head_beside_4_bit_layers_is_in_8_bits_where_it_is_large() -> None:
    by_name = {shape.name.split()[0]: shape for shape in SHAPES}
    small, large = by_name["1B"], by_name["70B"]
    in_16_bits, in_4_bits = (forms(CPU)[name] for name in ("bfloat16", "4-bit"))
    with_scales = small.vocabulary * (small.hidden + 2)
    assert small.bytes_read(0, in_4_bits) == with_scales
    assert small.bytes_read(0, in_16_bits) == 2 * small.hidden * small.vocabulary
    assert large.bytes_read(0, in_4_bits) == 2 * large.hidden * large.vocabulary


def test_the_kernels_are_those_of_a_loaded_model() -> None:
    used = kernels(CPU)
    assert used["float32"] == {"layers": "torch", "lm_head": "torch"}
    assert used["4-bit"] == {"layers": "torch int4", "lm_head": "torch int8"}
    assert used["nested"] == {"layers": "torch int4, two planes", "lm_head": "torch int8"}
    assert used["bfloat16"] == {"layers": "torch", "lm_head": "torch"}


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Has kernels measured without a clock, on an idle machine; returns the shapes so far."""
    shapes: list[tuple[int, int]] = []

    def measure(*shape: int) -> Measured:
        shapes.append((shape[0], shape[1]))
        failed = {Product.PACKED: "could not create a primitive"}
        return Measured(Products(one=Product.MV), 3e10, 2e10, steady=True, failed=failed)

    monkeypatch.setenv("D3_KERNELS", "auto")
    monkeypatch.setattr("d3cli.kernels.choices.measure", measure)
    monkeypatch.setattr(
        "d3cli.kernels.choices.measure_rows", lambda kind, *_: MeasuredRows(ROWS[kind], True)
    )
    monkeypatch.setattr(
        "d3cli.kernels.choices.measure_packing",
        lambda outputs, _: MeasuredPacking(outputs > 100_000, 0.7, True),
    )
    monkeypatch.setattr(
        "d3cli.kernels.choices.measure_head", lambda *_: MeasuredHead(True, 0.5, True)
    )
    monkeypatch.setattr("d3cli.kernels.choices.machine_is_busy", lambda: False)
    monkeypatch.setattr("d3cli.kernels.choices.bfloat16_is_fast", lambda *_: True)
    return shapes


def test_the_kernels_are_measured_once(d3: D3, measures: list[tuple[int, int]]) -> None:
    shown = d3("doctor")
    assert shown.code == 0, shown.err
    assert (2048, 8192) in measures
    assert (128256, 2048) in measures
    (row,) = (line for line in shown.out.splitlines() if line.startswith("2048 × 8192"))
    assert row.split("\t")[1:5] == ["torch mv", "30 GB/s", "1.50", "torch"]
    assert "oneDNN packed is out: could not create a primitive" in row
    assert "\t".join(CHOICES) in shown.out
    assert "int8, 2048 × 8192\t1 to 4 tokens\t5 and more" in shown.out
    assert "int4, 2048 × 8192\tall tokens" in shown.out
    assert "128256 × 2048\t8 bits\t0.50" in shown.out
    assert "were measured" in shown.err
    count = len(measures)
    again = d3("doctor", "--json")
    assert len(measures) == count
    assert "were measured" not in again.err
    found = json.loads(again.out)
    assert found["kernels"]["bfloat16"] == {"layers": "torch mv", "lm_head": "torch mv"}
    chosen = found["kernel_choices"]
    assert chosen["bfloat16_is_fast"]
    assert {tuple(c[k] for k in ("out_features", "in_features")) for c in chosen["choices"]} == set(
        measures
    )


def test_tune_measures_all_shapes_again(d3: D3, measures: list[tuple[int, int]]) -> None:
    d3("generate", "Hello.", "--dtype", "bfloat16", "--max-tokens", "1")
    d3("doctor")
    known = set(measures)
    measures.clear()
    assert d3("doctor", "--tune").code == 0
    assert set(measures) == known
    assert (128, 384) in known
    assert len(measures) == len(known)


def test_tune_on_a_busy_machine_says_that_it_measured_nothing(
    d3: D3, measures: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d3cli.kernels.choices.machine_is_busy", lambda: True)
    choices._choices.cache_clear()
    result = d3("doctor", "--tune")
    assert result.code == 1
    assert result.err.count("error: no kernel was measured: other programs keep this machine busy")
    assert measures == []
    assert d3("doctor").code == 0


def test_tune_where_measuring_is_switched_off(d3: D3) -> None:
    result = d3("doctor", "--tune")
    assert result.code == 1
    assert "error: no kernel was measured: D3_KERNELS is torch" in result.err
