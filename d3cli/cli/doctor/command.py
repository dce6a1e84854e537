"""``d3 doctor``: what this machine has, whether d3 works on it, and how fast models can be."""

import os
from typing import Annotated, Any

import typer

from d3cli.base.amounts import readable_size
from d3cli.base.hardware import check_address_space
from d3cli.cli import options
from d3cli.cli.output import Output
from d3cli.kernels.lean_imports import import_libraries

SCHEMA = 1
# Headings of the kernels chosen. A candidate that is left out raised, or was not exact.
CHOICES = (
    "bfloat16 weights",
    "kernel for one token",
    "reads",
    "× torch's speed",
    "kernel for many tokens",
    "left out",
)
ROWS = ("weights in fewer bits", "torch's kernel for", "unpacked for", "oneDNN's order", "left out")
HEADS = ("LM head", "beside layers in fewer bits", "time in 8 bits × bfloat16's")
LARGE = ("where it would lie", "weights", "needs", "by arithmetic; nothing was loaded")
TUNE_HELP = "Measure again which kernels are the fastest here. Best on an idle machine."


def doctor(
    tune: Annotated[bool, typer.Option("--tune", help=TUNE_HELP)] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001 - its callback does the work
) -> int:
    """Examine this machine: versions, processor, memory, GPU, kernels, expected speed.

    Measures for a second how fast memory can be read, and asks the built-in model to add two
    numbers. The kernels for weights in 16, 8 and 4 bits are measured once, and kept for all
    commands.

    A token takes at least as long as reading the weights, and as multiplying by them with the
    kernels chosen here. That gives the most tokens per second to expect.
    """
    check_address_space()
    output = Output()
    output.quiet_libraries()
    with output.progress.waiting("measuring"):
        import_libraries()
        from d3cli.cli.doctor.probe import examine

        found = examine(tune=tune)
    if as_json:
        output.json({"schema": SCHEMA} | found)
    else:
        output.table(("this machine", ""), _facts(found))
        output.write("\n")
        chosen = found["kernel_choices"]
        for headings, rows in (
            (CHOICES, _choices(chosen["choices"])),
            (ROWS, _rows(chosen)),
            (HEADS, _heads(chosen["heads"])),
        ):
            if rows:
                output.table(headings, rows, headed=True)
                output.write("\n")
        output.table(
            ("expected at most", "weights", "", "full depth", "depth 0.6", ""),
            [_speed(row) for row in found["expected"]],
        )
        output.write("\n")
        output.table(LARGE, [_fit(row) for row in found["large_model"]], headed=True)
        for note in found["kernel_choices"]["notes"]:
            output.note(note)
    if problem := found["builtin_model"]["problem"]:
        output.error(
            f"the built-in model does not work: {problem}",
            "free some memory if it is short, else install d3cli again, or report the output of "
            "d3 doctor --json",
        )
        return 1
    if tune and not found["kernel_choices"]["measured"]:
        output.error(*_why_not_measured())
        return 1
    return 0


def _why_not_measured() -> tuple[str, str]:
    """Why --tune measured nothing, and what to do."""
    from d3cli.kernels.choices import SWITCH

    if os.environ.get(SWITCH) == "torch":
        return f"no kernel was measured: {SWITCH} is torch", f"unset {SWITCH}"
    return (
        "no kernel was measured: other programs keep this machine busy",
        "end them or wait for them, then run d3 doctor --tune again",
    )


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    processor, memory, files = found["processor"], found["memory"], found["files"]
    builtin, bandwidth = found["builtin_model"], found["read_bandwidth"]
    cores = f"{processor['physical_cores'] or '?'} cores, {processor['logical_cores']} threads"
    if processor["usable_cores"] != processor["physical_cores"]:
        cores += f", of which this process may use {processor['usable_cores']}"
    rows = [(name, text or "not installed") for name, text in found["versions"].items()]
    rows += [
        ("processor", processor["name"]),
        ("cores", f"{cores}; torch uses {processor['threads']}"),
        ("matrix features", ", ".join(processor["matrix_features"]) or "none that torch knows"),
        ("memory", _free(memory["available_bytes"], memory["total_bytes"])),
    ]
    rows += [
        (f"GPU {gpu['device']}", f"{gpu['name']}, {_free(gpu['free_bytes'], gpu['total_bytes'])}")
        for gpu in found["gpus"]
    ] or [("GPU", "none that torch can use")]
    config = "" if files["config_exists"] else " (does not exist: all settings have their defaults)"
    works = f"answers ({builtin['seconds']:.1f} s with loading)" if builtin["answers"] else None
    speed = bandwidth["bytes_per_second"] / 1e9
    return [
        *rows,
        ("read bandwidth", f"{speed:.1f} GB/s ({bandwidth['device']})"),
        *((f"kernels, {form}", _kernels(used)) for form, used in found["kernels"].items()),
        *([("nested weights", _nested(found["nested_times"]))] if found["nested_times"] else []),
        ("config", files["config"] + config),
        ("hub cache", files["hub_cache"]),
        ("default model", files["default_model"]),
        ("built-in model", works or f"does not work: {builtin['problem']}"),
    ]


def _kernels(used: dict[str, str]) -> str:
    layers, head = used["layers"], used["lm_head"]
    return layers if layers == head else f"{layers}; LM head: {head}"


def _nested(times: dict[str, float]) -> str:
    shares = f"{times['both']:.2f} × bfloat16's time; {times['high']:.2f} × without the low plane"
    return shares if times["both"] <= 1 else f"{shares}: slower than bfloat16 where both are read"


def _choices(choices: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """For each shape of weights: the kernels, and the speed with one token."""
    return [
        (
            f"{choice['out_features']} × {choice['in_features']}",
            choice["one"],
            f"{choice['gigabytes_per_s']:.3g} GB/s",
            f"{choice['gigabytes_per_s'] / choice['torch_gigabytes_per_s']:.2f}",
            choice["many"],
            "; ".join(f"{name} is out: {why}" for name, why in choice["failed"].items()),
        )
        for choice in sorted(choices, key=_order)
    ]


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """For each shape of weights in fewer bits: how many tokens have which kernel."""
    packing = {("int8", *_shape(each)): each for each in found["packing"]}
    rows: list[tuple[str, ...]] = []
    for choice in sorted(found["rows"], key=_order):
        packed = packing.get((choice["kind"], *_shape(choice)))
        out = {"unpacking": choice["failed"], "oneDNN's order": packed and packed["failed"]}
        rows.append(
            (
                f"{choice['kind']}, {choice['out_features']} × {choice['in_features']}",
                *(("", "") if packed and packed["packed"] else _ranges(choice["kernel_rows"])),
                _packing(packed),
                "; ".join(f"{name} is out: {why}" for name, why in out.items() if why),
            )
        )
    return rows


def _packing(choice: dict[str, Any] | None) -> str:
    """Whether int8 weights are packed, and the time of one token as a share of torch's kernel's."""
    if choice is None or choice["failed"]:
        return ""
    return f"{'all tokens' if choice['packed'] else 'no'}, {choice['share']:.2f} × the time"


def _ranges(kernel_rows: int) -> tuple[str, str]:
    from d3cli.kernels.measure_small import UNLIMITED

    if kernel_rows == UNLIMITED:
        return "all tokens", ""
    several = "one token" if kernel_rows == 1 else f"1 to {kernel_rows} tokens"
    return several, f"{kernel_rows + 1} and more"


def _heads(choices: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            f"{choice['out_features']} × {choice['in_features']}",
            "8 bits" if choice["in_8_bits"] else "bfloat16",
            f"{choice['share']:.2f}",
        )
        for choice in sorted(choices, key=_order)
    ]


def _order(choice: dict[str, Any]) -> tuple[str, int, int]:
    return choice.get("kind", ""), choice["in_features"], choice["out_features"]


def _shape(choice: dict[str, Any]) -> tuple[int, int]:
    return choice["out_features"], choice["in_features"]


def _speed(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["model"],
        row["weights"],
        readable_size(row["size_bytes"]),
        f"{row['full_depth']:.3g} tok/s",
        f"{row['depth_0_6']:.3g} tok/s",
        "" if row["fits"] else "does not fit",
    )


def _fit(row: dict[str, Any]) -> tuple[str, ...]:
    """What a large model needs, and what would lie where."""
    size = readable_size(row["need_bytes"])
    return row["model"], row["weights"], size, "; ".join(row["summary"])


def _free(free: int, total: int) -> str:
    return f"{readable_size(free)} free of {readable_size(total)}"
