"""What `scripts/bench_report.py` makes of the samples of several processes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bench_report
from bench_report import BF16, HF, INT4, INT8, Spread, aims, fastest, gain_over, named, report


def arm(name: str, *seconds: float, depth: float | None = None, read: int | None = None) -> Any:
    group = name.partition(",")[0] if name.startswith("d3") else name.partition(" ")[0]
    return {
        "name": name,
        "group": group,
        "reference": f"{group}, full depth" if group.startswith("d3") else None,
        "depth": depth,
        "bytes": read,
        "seconds": seconds,
    }


def process(*arms: Any, model: str = "llama-3.2-1b", tier: str = "native", **other: Any) -> Any:
    return {
        "tier": tier,
        "model": model,
        "machine": {"processor": "a processor", "system": "a system"},
        "instructions": "AVX512",
        "versions": {"torch": "2.13.0"},
        "threads": 2,
        "layers": 16,
        "kernels": {"d3 bfloat16": {"8 x 4": "torch"}},
        "bandwidth": [20e9, 21e9],
        "load": [[0.1, 0, 0], [0.2, 0, 0]],
        "peak_bytes": 10**9,
        "notes": [],
        "failed": [],
        "arms": list(arms),
    } | other


def judged(*processes: Any) -> dict[str, tuple[str, str, str]]:
    return {name: rest for name, *rest in map(list, aims(processes))}  # type: ignore[misc]


def test_ratios_are_taken_within_half_a_round_and_not_between_medians() -> None:
    # The whole second half round was slow: each pair says 2, the medians say 5 over 3.
    one = process(arm("HF static cache", 2.0, 8.0, 2.0, 8.0), arm(BF16, 1.0, 4.0, 1.0, 4.0))
    assert gain_over([one], BF16, (HF,)) == Spread(2.0, 2.0, 2.0)


def test_the_median_of_the_processes_stands_with_the_least_and_the_greatest() -> None:
    each = [process(arm("HF static cache", x, x), arm(BF16, 1.0, 1.0)) for x in (1.5, 3.0, 1.75)]
    found = gain_over(each, BF16, (HF,))
    assert found == Spread(1.75, 1.5, 3.0)
    assert str(found) == "1.75 (1.50–3.00)"


def test_each_process_is_compared_with_its_own_fastest_rival() -> None:
    first = process(arm("HF dynamic cache", 4.0), arm("HF static cache", 3.0), arm(BF16, 1.0))
    second = process(arm("HF dynamic cache", 2.0), arm("HF static cache", 3.0), arm(BF16, 1.0))
    assert (fastest(first, (HF,)) or {})["name"] == "HF static cache"
    assert gain_over([first, second], BF16, (HF,)) == Spread(2.5, 2.0, 3.0)


def test_an_arm_that_did_not_run_everywhere_has_no_figure() -> None:
    whole = process(arm("HF static cache", 2.0), arm(BF16, 1.0))
    without = process(arm("HF static cache", 2.0), failed=[f"{BF16}: no memory"])
    assert named(without, BF16) is None
    assert gain_over([whole, without], BF16, (HF,)) is None
    assert f"| {BF16}" not in report([whole, without])
    assert f"{BF16}: no memory" in report([whole, without])


def test_aims_of_the_1b_shape() -> None:
    rivals = (
        arm("HF static cache", 1.6),
        arm("llama.cpp Q8_0", 1.1),
        arm("llama.cpp Q4_0", 0.9),
        arm("llama.cpp Q4_K_M", 0.8),
    )
    quick = process(*rivals, arm(BF16, 1.0), arm(INT8, 1.0), arm(INT4, 0.5))
    slow = process(*rivals, arm(BF16, 1.25), arm(INT8, 1.0), arm(INT4, 0.5))
    found = judged(quick, quick, slow)
    assert found == {
        f"{BF16}, against HF's best": ["1.60 (1.28–1.60)", "≥ 1.5", "met"],
        f"{BF16}, against HF's best, in every process": ["1.60 (1.28–1.60)", "≥ 1.3", "missed"],
        f"{INT8}, against llama.cpp Q8_0": ["1.10 (1.10–1.10)", "≥ 1.2", "missed"],
        f"{INT4}, against llama.cpp Q4_0 or llama.cpp Q4_K_M": ["1.60 (1.60–1.60)", "≥ 1.3", "met"],
    }


def test_an_aim_without_its_rival_is_not_judged() -> None:
    assert not judged(process(arm(INT4, 1.0)))
    assert not judged(process(arm("HF static cache", 9.0), arm(BF16, 1.0), tier="avx512"))
    assert judged(process(arm("HF static cache", 9.0), arm(INT4, 1.0), tier="avx2"))


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(0.8, "met"), (0.824, "met"), (0.85, "missed")],  # 1.00, 0.97 and 0.94
)
def test_the_clock_is_judged_by_the_bytes(seconds: float, verdict: str) -> None:
    shallow = "d3 bfloat16, 12 of 16 layers"
    one = process(arm(BF16, 1.0, depth=16.0, read=100), arm(shallow, seconds, depth=12.0, read=80))
    ((name, (_, wanted, found)),) = judged(one).items()
    assert (name, wanted, found) == (f"{shallow}, clock against bytes", "≥ 0.97", verdict)


def test_the_report_has_a_table_for_each_tier_and_says_where_processes_differ() -> None:
    arms = (
        arm("HF static cache", 0.2),
        arm(BF16, 0.1, depth=16.0, read=10**9),
        arm("d3 bfloat16, 12 of 16 layers", 0.08, depth=12.0, read=8 * 10**8),
        arm("d3 bfloat16, 8 of 16 layers", 0.06, depth=8.0, read=6 * 10**8),
    )
    other = {"d3 bfloat16": {"8 x 4": "mv"}}
    text = report(
        [
            process(*arms),
            process(*arms, tier="avx2", notes=["the machine is busy"]),
            process(*arms, kernels=other, bandwidth=[20e9, 10e9]),
        ]
    )
    native, avx2 = text.index("tier native"), text.index("tier avx2")
    assert native < avx2
    assert "processes: 2, half rounds in each: 1" in text[:avx2]
    assert "steady in 1 of 2 processes" in text[:avx2]
    assert "d3 bfloat16 in 1 of 2 processes: 8 x 4: mv" in text[:avx2]
    assert "d3 bfloat16: 20.0 ms + 5.00 ms a layer (R² 1.0000)" in text
    assert "the machine is busy" not in text[:avx2]
    assert "the machine is busy" in text[avx2:]
    line = next(line for line in text.splitlines() if "12 of 16 layers " in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == [
        "80.0",
        "2.50 (2.50–2.50)",
        "1.25 (1.25–1.25)",
        "1.33",
        "1.25",
        "1.00 (1.00–1.00)",
        # The bandwidths are means of 20.5 and of 15 GB/s.
        "58%",
    ]


def test_results_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bench_decode

    results = [process(arm("HF static cache", 0.2), arm(BF16, 0.1))]
    stored = tmp_path / "results.json"
    stored.write_text(json.dumps({"processes": results}))
    bench_decode.main(["--read", str(stored)])
    assert capsys.readouterr().out == bench_report.report(results) + "\n"


def test_tiers_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    import bench_decode

    assert bench_decode.arguments(["--tier", "native,avx2"]).tier == ["native", "avx2"]
    assert bench_decode.arguments([]).tier == ["native"]
    with pytest.raises(SystemExit):
        bench_decode.arguments(["--tier", "sse"])
    assert "there is no tier sse" in capsys.readouterr().err
