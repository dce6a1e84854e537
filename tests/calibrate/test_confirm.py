"""Which candidates are tested on the unseen half, and in what order."""

from d3cli.calibrate.confirm import safest_first
from d3cli.calibrate.race import Tried
from d3cli.calibrate.space import Candidate
from d3cli.depth.schedule import DepthSchedule
from d3cli.kernels.quantization import Quantization
from d3cli.scoring.intervals import Drop

TARGET = 0.01
RESPONSES = [40] * 8


def tried(
    order: tuple[str, ...], speed: float, high: float, quantization: Quantization | None = "int8"
) -> Tried:
    """A constant depth, or full depth, with an upper bound of its drop on the search half."""
    schedule = DepthSchedule(8, 0.01 if order else 1.0, skip_order=order)
    kind = "layer" if order else None
    candidate = Candidate(schedule, kind, speed, speed, 0.0, quantization)
    return Tried(candidate, 8, Drop(high - 0.002, high - 0.004, high))


def test_the_sequence_goes_from_the_safest_to_the_fastest_and_skips_what_is_beaten() -> None:
    slow, beaten, fast = (
        tried(("1",), 1.2, 0.001),
        tried(("2",), 1.3, 0.006),
        tried(("3",), 2, 0.005),
    )
    fails = tried(("4",), 3, 2 * TARGET)
    sequence = safest_first([fast, fails, beaten, slow], TARGET, RESPONSES)
    assert sequence == [slow.candidate, fast.candidate]


def test_luck_on_the_search_half_does_not_displace_full_depth_in_fewer_bits() -> None:
    int8, int4 = tried((), 1.6, 0.0003), tried((), 1.5, 0.004, "int4")
    lucky = tried(("1", "2"), 1.9, -0.006)
    slower = tried(("1",), 1.1, -0.005)  # neither faster nor safer than the lucky one
    sequence = safest_first([lucky, int4, int8, slower], TARGET, RESPONSES)
    assert sequence == [int8.candidate, lucky.candidate]
