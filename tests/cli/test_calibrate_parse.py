"""Targets and times as typed."""

import pytest

from d3cli.base.errors import UsageError
from d3cli.cli.calibrate.parse import parse_duration, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [("1%", 0.01), ("0.5%", 0.005), ("0.01", 0.01), ("100%", 1.0), (" 2% ", 0.02)],
)
def test_targets_are_percentages_or_fractions(text: str, target: float) -> None:
    assert parse_target(text) == pytest.approx(target)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1", "write 1% for 1 percent"),
        ("2.5", "write 2.5%"),
        ("0", "above 0%"),
        ("-1%", "above 0%"),
        ("101%", "at most 100%"),
        ("nan", "above 0%"),
        ("inf%", "at most 100%"),
        ("1e400", "at most 100%"),
        ("much", "1%"),
        ("", "1%"),
    ],
)
def test_other_targets_are_refused(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_target(text)
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h", 3600),
        ("1h30m", 5400),
        ("0.5m", 30),
        ("2400h", 8_640_000),
    ],
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "-5m", "10 minutes", "0s", "m", "1e3s", "2401h", "9999999h"]
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)
