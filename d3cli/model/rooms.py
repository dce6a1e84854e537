"""The devices and stores of this machine with what is free there, and where a model lies on them.

Asks torch for GPUs and the system for memory. Loads nothing, and knows nothing of how weights are
moved.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from d3cli.base.amounts import readable_size
from d3cli.base.errors import NotEnoughMemoryError, Setting, UsageError, Words
from d3cli.depth.families import Family
from d3cli.files.safetensors import Description
from d3cli.kernels.plan import KernelPlan
from d3cli.model.held_weights import HeldWeights
from d3cli.model.memory import MemoryNeed, available_memory, predict_for_plan
from d3cli.model.placement import Needs, Placement, Room, plan_placement

CPU, DISK = "cpu", "disk"


def place_names(limits: Mapping[str, int], device: str) -> dict[str, int]:
    """Limits of memory by the names of places: "cuda:0" also for "0".

    Args:
        limits: bytes, by the names that a user gives.
        device: the device option.

    Raises:
        UsageError: a place is not here, or d3 does not choose the places.
    """
    if limits and device != "auto":
        raise UsageError(
            (Setting("max_memory"), f' is for several places, and the device is "{device}"'),
            ("use ", Setting("device", "auto"), ", or leave out ", Setting("max_memory")),
        )
    return {_place_name(name): nbytes for name, nbytes in limits.items()}


def _place_name(name: str) -> str:
    if name in (CPU, DISK):
        return name
    number = name.removeprefix("cuda:")
    if not number.isdecimal():
        raise UsageError(
            (Setting("max_memory"), f' names "{name}"'),
            "name a GPU by its number, cpu or disk: 0=10GiB,cpu=32GiB",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number) >= count:
        found = f"{count} of them, counted from 0" if count else "none"
        raise UsageError(
            (Setting("max_memory"), f" names GPU {int(number)}, which is not here"),
            f"torch finds {found}",
        )
    return f"cuda:{int(number)}"


def rooms_here(
    limits: Mapping[str, int], *, beside: int = 0, force: bool = False
) -> tuple[list[Room], list[Room]]:
    """Where layers can run, and where further weights can lie; the fastest first.

    Without a GPU, layers run on the CPU. The disk holds the model's files already.

    Args:
        limits: the most bytes to use, by the names of places; what is free is a limit as well.
        beside: bytes that something else will take on the first device.
        force: whether a given limit holds even if less is free.
    """

    def room(name: str) -> Room:
        limit = limits.get(name)
        if limit is not None and force:
            return Room(name, limit)
        free = available_memory(torch.device(name))
        return Room(name, free if limit is None else min(limit, free))

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [room(f"cuda:{index}") for index in range(count)]
    devices = [gpu for gpu in gpus if gpu.free] or [room(CPU)]
    stores = [Room(DISK, limits.get(DISK))]
    if devices[0].name != CPU:
        stores.insert(0, room(CPU))
    first = devices[0]
    return [replace(first, free=max(0, (first.free or 0) - beside)), *devices[1:]], stores


def place_model(
    model: Description,
    config: Any,
    plan: KernelPlan,
    family: Family,
    *,
    rooms: tuple[list[Room], list[Room]],
    positions: int,
    prompt_tokens: int,
) -> tuple[KernelPlan, Placement | None]:
    """Finds places for a model: the first device that holds all of it, else several.

    Returns the plan of kernels with the main device, and the placement; None for one device.

    Args:
        config: its parsed config.
        plan: its kernels on one device.
        family: where the parts of its decoder are.
        rooms: what `rooms_here` returned.
        positions: tokens that the KV cache has room for.
        prompt_tokens: the length of the prompt.

    Raises:
        NotEnoughMemoryError: it does not fit anywhere, or cannot be split.
    """
    devices, stores = rooms
    need = predict_for_plan(model, config, plan, positions, prompt_tokens)
    for device in devices:
        if device.holds(need.total):
            found = torch.device(device.name)
            return replace(plan, form=replace(plan.form, device=found)), None
    why = _why_whole(plan, family)
    if why:
        free = " and ".join(f"{readable_size(room.free or 0)} on {room.name}" for room in devices)
        raise NotEnoughMemoryError(
            f"{model.name} needs about {readable_size(need.total)} on one device, since {why}; "
            f"d3 may use {free}",
            (*_FEWER, "raise ", Setting("max_memory")),
        )
    if any(tensor.is_expert for tensor in model.tensors):
        # transformers joins these while loading, so no file holds the weights as they run.
        stores = [store for store in stores if store.name != DISK]
    plain = plan.by_torch(torch.device(devices[0].name))
    need = predict_for_plan(model, config, plain, positions, prompt_tokens)
    placement = plan_placement(_by_layer(model, config, plain, need), devices, stores)
    return plan.by_torch(torch.device(placement.main)), placement


_FEWER: Words = ("use a smaller model, or ",)


def _why_whole(plan: KernelPlan, family: Family) -> str:
    """Why a model cannot be split; empty if it can."""
    if plan.quantized is not None:
        return "weights in fewer bits are made while loading and cannot be split"
    if not family.can_skip:
        return "d3 is not tested on models of its type"
    return ""


def _by_layer(model: Description, config: Any, plan: KernelPlan, need: MemoryNeed) -> Needs:
    layers = HeldWeights(model, config, plan).by_layer
    return Needs(
        outside=need.total - need.kv_cache - need.workspace - sum(layers),
        layers=layers,
        kv_per_layer=-(-need.kv_cache // len(layers)),
        workspace=need.workspace,
    )
