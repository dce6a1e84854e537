"""Which layers lie where: arithmetic over devices that need not exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3cli.base.errors import NotEnoughMemoryError
from d3cli.model.placement import Needs, Placement, Room, plan_placement

# On one device: 30 + 8 * (10 + 1) + 5 = 123 bytes.
NEEDS = Needs(outside=30, layers=(10,) * 8, kv_per_layer=1, workspace=5)
DISK = Room("disk", None)


def gpus(*free: int) -> list[Room]:
    return [Room(f"cuda:{index}", bytes_) for index, bytes_ in enumerate(free)]


def test_a_model_that_fits_one_device_lies_there_alone() -> None:
    placement = plan_placement(NEEDS, gpus(122, 123, 1000), [DISK])
    assert placement.places == ("cuda:1",)
    assert placement.homes == ("cuda:1",) * 8
    assert placement.bytes_in("cuda:1") == NEEDS.total == 123
    assert placement.moved() == 0


def test_layers_spread_over_devices_in_order() -> None:
    # 30 + 5 leave 4 layers of 11 for the first; 5 leave 4 for the second.
    placement = plan_placement(NEEDS, gpus(79, 49, 49), [DISK])
    assert placement.homes == ("cuda:0",) * 4 + ("cuda:1",) * 4
    assert placement.runs_on == placement.homes
    assert (placement.bytes_in("cuda:0"), placement.bytes_in("cuda:1")) == (79, 49)
    assert "cuda:2" not in placement.places


def test_the_rest_lies_in_stores_and_runs_on_the_main_device() -> None:
    # Of 80 bytes, 35 are taken, 10 are for the layer that is moved, 8 for all keys and values.
    placement = plan_placement(NEEDS, gpus(80), [Room("cpu", 25), DISK])
    assert placement.homes == ("cuda:0",) * 2 + ("cpu",) * 2 + ("disk",) * 4
    assert set(placement.runs_on) == {"cuda:0"}
    assert [placement.bytes_in(place) for place in placement.places] == [73, 20, 40]
    assert placement.summary() == [
        "cuda:0: embeddings, LM head, layers 0 to 1 (7.3e-05 MB)",
        "cpu: layers 2 to 3, moved to cuda:0 for each pass (2e-05 MB)",
        "disk: layers 4 to 7, moved to cuda:0 for each pass (4e-05 MB)",
    ]


def test_a_dropped_layer_is_not_moved() -> None:
    placement = plan_placement(NEEDS, gpus(80), [Room("cpu", 25), DISK])
    assert placement.moved() == 60
    assert placement.moved({0, 1}) == 60
    assert placement.moved({1, 3, 7}) == 40


def test_a_full_first_device_is_not_the_main_one() -> None:
    placement = plan_placement(NEEDS, gpus(16, 112))
    assert placement.main == "cuda:1"
    assert placement.layers_in("cuda:0") == (7,)


def test_without_a_gpu_the_disk_is_the_store() -> None:
    placement = plan_placement(NEEDS, [Room("cpu", 60)], [DISK])
    assert placement.main == "cpu"
    assert placement.layers_in("cpu") == ()
    assert placement.moved() == 80


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(NotEnoughMemoryError, match=r"0\.000123 MB") as caught:
        plan_placement(NEEDS, gpus(79), [Room("cpu", 25)])
    assert "on cuda:0" in caught.value.message
    assert "on cpu" in caught.value.message
    with pytest.raises(NotEnoughMemoryError):  # no place for the LM head
        plan_placement(NEEDS, gpus(40, 40), [DISK])


@given(
    layers=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    free=st.lists(st.integers(0, 120), min_size=1, max_size=4),
    in_memory=st.integers(0, 60),
)
def test_no_place_holds_more_than_is_free(
    layers: list[int], free: list[int], in_memory: int
) -> None:
    needs = Needs(outside=9, layers=tuple(layers), kv_per_layer=2, workspace=3)
    devices, store = gpus(*free), Room("cpu", in_memory)
    placement = _planned(needs, devices, [store, DISK])
    if placement is None:
        # All layers on the disk is the least that a device can need.
        least = 9 + 3 + 2 * len(layers) + max(layers)
        assert all(room.free is not None and room.free < least for room in devices)
        return
    assert len(placement.homes) == len(layers)
    for room in (*devices, store):
        if room.name in placement.places:
            assert room.holds(placement.bytes_in(room.name))
    weights = sum(placement.bytes_in(store) for store in placement.stores)
    assert placement.moved() == weights <= sum(layers)


def _planned(needs: Needs, devices: list[Room], stores: list[Room]) -> Placement | None:
    try:
        return plan_placement(needs, devices, stores)
    except NotEnoughMemoryError:
        return None
