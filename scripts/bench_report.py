"""Turns the results of `bench_decode.py` into tables: medians over processes, and the aims.

Pure arithmetic on what `bench_arms.measure` returns, with the key "tier" added. Imports no torch.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, linear_regression, median
from typing import Any

Process = Mapping[str, Any]
STEADY = 0.1  # largest relative difference of the bandwidths before and after
HF, FULL_DEPTH = "HF", "full depth"
B1, SMOLLM2, DEMO = "llama-3.2-1b", "smollm2-135m", "demo"
BF16, F32, INT8, INT4 = (
    f"d3 {kind}, {FULL_DEPTH}" for kind in ("bfloat16", "float32", "int8", "int4")
)


@dataclass(frozen=True)
class Aim:
    """How fast an arm shall be.

    Attributes:
        model: the shape that it is stated for.
        arm: the arm's name.
        rivals: how the names of the arms begin of which the fastest is compared.
        at_least: the ratio of their times, for each tier with an aim.
        in_every_process: holds for the least of all processes, not only for the median.
    """

    model: str
    arm: str
    rivals: tuple[str, ...]
    at_least: Mapping[str, float]
    in_every_process: bool = False


AIMS = (
    Aim(B1, BF16, (HF,), {"native": 1.5, "avx2": 1.2}),
    Aim(B1, BF16, (HF,), {"native": 1.3}, in_every_process=True),
    Aim(B1, INT8, ("llama.cpp Q8_0",), {"native": 1.2}),
    Aim(B1, INT4, ("llama.cpp Q4_0", "llama.cpp Q4_K_M"), {"native": 1.3}),
    Aim(B1, INT4, (HF,), {"avx2": 2.5}),
    Aim(SMOLLM2, BF16, (HF,), {"native": 2.2, "avx2": 1.8}),
    Aim(SMOLLM2, INT4, ("llama.cpp Q4_1",), {"native": 1.0}),
    Aim(DEMO, BF16, (HF,), {"native": 2.0}),
    Aim(DEMO, F32, (HF,), {"native": 2.0}),
)
# The clock's gain from fewer layers over the gain in bytes, for every d3 arm of this shape.
CLOCK_MODEL, CLOCK_AIM = B1, {"native": 0.97, "avx2": 0.95}


@dataclass(frozen=True)
class Spread:
    """A figure of several processes."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        return cls(median(figures), min(figures), max(figures))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}–{self.greatest:.2f})"


def named(process: Process, name: str | None) -> Mapping[str, Any] | None:
    """The arm of this name; None if it did not run."""
    return next((arm for arm in process["arms"] if arm["name"] == name), None)


def fastest(process: Process, prefixes: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The fastest of the arms whose names begin so; None if none ran."""
    found = [arm for arm in process["arms"] if arm["name"].startswith(prefixes)]
    return min(found, key=lambda arm: median(arm["seconds"]), default=None)


def gain(arm: Mapping[str, Any], rival: Mapping[str, Any]) -> float:
    """How many times as fast an arm is: the median over half rounds."""
    return median(b / a for a, b in zip(arm["seconds"], rival["seconds"], strict=True))


def spread(
    processes: Sequence[Process], figure: Callable[[Process], float | None]
) -> Spread | None:
    """A figure over all processes; None if one of them does not have it."""
    figures = [figure(process) for process in processes]
    present = [value for value in figures if value is not None]
    return Spread.of(present) if present and len(present) == len(figures) else None


def gain_over(processes: Sequence[Process], name: str, rivals: tuple[str, ...]) -> Spread | None:
    """An arm's gain over the fastest rival of each process."""

    def one(process: Process) -> float | None:
        arm, rival = named(process, name), fastest(process, rivals)
        return gain(arm, rival) if arm and rival else None

    return spread(processes, one)


def gain_over_full_depth(processes: Sequence[Process], name: str) -> Spread | None:
    """An arm's gain over the same weights at full depth, at the same steps."""

    def one(process: Process) -> float | None:
        arm = named(process, name)
        full = named(process, arm["reference"]) if arm else None
        return gain(arm, full) if arm and full else None

    return spread(processes, one)


def clock_over_bytes(processes: Sequence[Process], name: str) -> Spread | None:
    """The gain over full depth at the same steps, divided by the gain in bytes."""

    def one(process: Process) -> float | None:
        arm = named(process, name)
        full = named(process, arm["reference"]) if arm else None
        if not arm or not full or arm["depth"] is None:
            return None  # not a step of d3
        return gain(arm, full) * arm["bytes"] / full["bytes"]

    return spread(processes, one)


def is_fixed_depth(arm: Mapping[str, Any]) -> bool:
    """Whether an arm runs the same number of layers, fewer than all, at every step."""
    return arm["name"].endswith(" layers")


def aims(processes: Sequence[Process]) -> Iterator[tuple[str, str, str, str]]:
    """What is judged, what was measured, what is wanted, and "met" or "missed"."""
    model, tier = processes[0]["model"], processes[0]["tier"]
    for aim in AIMS:
        if aim.model != model or tier not in aim.at_least:
            continue
        found = gain_over(processes, aim.arm, aim.rivals)
        if found is None:
            continue
        best = "HF's best" if aim.rivals == (HF,) else " or ".join(aim.rivals)
        name, judged = f"{aim.arm}, against {best}", found.median
        if aim.in_every_process:
            name, judged = f"{name}, in every process", found.least
        yield name, str(found), f"≥ {aim.at_least[tier]}", verdict(judged, aim.at_least[tier])
    if model != CLOCK_MODEL or tier not in CLOCK_AIM:
        return
    for arm in filter(is_fixed_depth, processes[0]["arms"]):
        found = clock_over_bytes(processes, arm["name"])
        if found is not None:
            name, least = f"{arm['name']}, clock against bytes", CLOCK_AIM[tier]
            yield name, str(found), f"≥ {least}", verdict(found.median, least)


def verdict(measured: float, at_least: float) -> str:
    # Compared as shown, so that a table never says that 0.97 misses 0.97.
    return "met" if round(measured, 2) >= at_least else "missed"


def rows(processes: Sequence[Process]) -> Iterator[tuple[str, ...]]:
    """One row for each arm that ran in every process."""
    for arm in processes[0]["arms"]:
        name = arm["name"]
        each = [found for process in processes if (found := named(process, name))]
        if len(each) < len(processes):
            continue
        full = named(processes[0], arm["reference"])
        share = spread(processes, lambda process, name=name: of_bandwidth(process, name))
        yield (
            name,
            f"{1000 * median(median(found['seconds']) for found in each):.1f}",
            shown(gain_over(processes, name, (HF,))),
            shown(gain_over_full_depth(processes, name)),
            f"{processes[0]['layers'] / arm['depth']:.2f}" if arm["depth"] else "",
            f"{full['bytes'] / arm['bytes']:.2f}" if full and arm["bytes"] else "",
            shown(clock_over_bytes(processes, name)),
            f"{share.median:.0%}" if share else "",
        )


def shown(found: Spread | None) -> str:
    return "" if found is None else str(found)


def of_bandwidth(process: Process, name: str) -> float | None:
    """The rate at which an arm reads its weights, over the memory's bandwidth."""
    arm = named(process, name)
    if arm is None or arm["bytes"] is None:
        return None
    roof: float = sum(process["bandwidth"]) / 2
    return float(arm["bytes"]) / median(arm["seconds"]) / roof


def steps(processes: Sequence[Process]) -> Iterator[str]:
    """Each group's time as a fixed part and a part for each layer."""
    for group in dict.fromkeys(arm["group"] for arm in processes[0]["arms"]):
        chosen = [
            arm
            for arm in processes[0]["arms"]
            if arm["group"] == group and (is_fixed_depth(arm) or arm["name"].endswith(FULL_DEPTH))
        ]
        if len(chosen) < 3:
            continue
        depths = [arm["depth"] for arm in chosen]
        times = [
            1000 * median(median((named(p, arm["name"]) or arm)["seconds"]) for p in processes)
            for arm in chosen
        ]
        slope, fixed = linear_regression(depths, times)
        fit = correlation(depths, times) ** 2
        yield f"{group}: {fixed:.1f} ms + {slope:.2f} ms a layer (R² {fit:.4f})"


def kernels(processes: Sequence[Process]) -> Iterator[str]:
    """The kernels of each group; several lines where processes differ."""
    for group in processes[0]["kernels"]:
        used = Counter(
            "; ".join(f"{shape}: {kernel}" for shape, kernel in process["kernels"][group].items())
            for process in processes
        )
        for text, count in used.items():
            where = "" if count == len(processes) else f" in {count} of {len(processes)} processes"
            yield f"{group}{where}: {text}"


def table(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it can be read in a terminal."""
    lines = [tuple(titles), *map(tuple, body)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def heading(processes: Sequence[Process]) -> str:
    """What was measured, on what, and how steady the machine was."""
    first = processes[0]
    steady = [abs(b - a) <= STEADY * max(a, b) for a, b in (p["bandwidth"] for p in processes)]
    bandwidth = [rate / 1e9 for process in processes for rate in process["bandwidth"]]
    versions = ", ".join(f"{name} {found}" for name, found in first["versions"].items() if found)
    return (
        f"{first['model']}, tier {first['tier']} ({first['instructions']}), {first['threads']} "
        f"threads, {first['machine']['processor']}\n{versions}\n"
        f"processes: {len(processes)}, half rounds in each: {len(first['arms'][0]['seconds'])}; "
        f"bandwidth {min(bandwidth):.1f} to {max(bandwidth):.1f} GB/s, steady in {sum(steady)} of "
        f"{len(steady)} processes; load at most "
        f"{max(load[0] for p in processes for load in p['load']):.1f}; peak memory with all models "
        f"{max(p['peak_bytes'] for p in processes) / 1e9:.1f} GB"
    )


def report(results: Sequence[Process]) -> str:
    """The tables of each tier, then all aims that this run can judge."""
    by_tier: dict[str, list[Process]] = {}
    for process in results:
        by_tier.setdefault(process["tier"], []).append(process)
    parts, judged = [], []
    titles = ("arm", "ms", "× HF's best", "× full depth", "layers ×", "bytes ×")
    for tier, processes in by_tier.items():
        body = list(rows(processes))
        said = dict.fromkeys(
            text for process in processes for text in (*process["notes"], *process["failed"])
        )
        parts += [
            heading(processes),
            table((*titles, "clock / bytes", "of bandwidth"), body),
            "\n".join([*steps(processes), *kernels(processes), *said]),
        ]
        judged += [(tier, *row) for row in aims(processes)]
    if judged:
        parts.append(table(("tier", "aim", "measured", "wanted", ""), judged))
    return "\n\n".join(parts)
