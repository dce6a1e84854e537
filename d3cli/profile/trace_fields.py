"""The numbers that a trace may hold: bounded, and finite."""

import math
from dataclasses import fields
from typing import Annotated, Any

from msgspec import Meta

# Limits far above any measurement. They keep sums of a damaged file's numbers from overflowing.
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
LargeCount = Annotated[int, Meta(ge=0, le=2**62)]
Bytes = LargeCount
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Number = Annotated[float, Meta(ge=-1e12, le=1e12)]
NotNegative = Annotated[float, Meta(ge=0, le=1e12)]
Positive = Annotated[float, Meta(ge=1e-9, le=1e12)]
SamplingValue = Number | Annotated[int, Meta(ge=-(2**62), le=2**62)] | None


def require(holds: bool, problem: str) -> None:
    """Raises ValueError with this problem; msgspec adds where in the file it is."""
    if not holds:
        raise ValueError(problem)


def check_finite(value: Any) -> None:
    """Raises ValueError for NaN and infinity, which JSON cannot hold."""
    for field in fields(value):
        number = getattr(value, field.name)
        require(not isinstance(number, float) or math.isfinite(number), f"{field.name}: {number}")
