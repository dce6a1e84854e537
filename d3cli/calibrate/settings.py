"""What a calibration looks for."""

from dataclasses import dataclass
from typing import Literal

from d3cli.base.errors import Setting, UsageError
from d3cli.depth.units import UnitChoice


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """What to look for.

    Attributes:
        target_drop: the largest allowed rise of perplexity, as a fraction.
        units: what may be dropped; "auto" searches layers and sublayers and keeps what is faster,
            and mixes with low planes where the weights are nested.
        order: how units are ranked: by influence, greedily, or for each prompt by its own
            influence. "auto" is greedy where time allows, and each prompt's own order as well.
        confidence: of the one-sided bound that must be within the target.
        reply_tokens: the reply length that savings are computed for.
        seed: splits the documents.
        max_seconds: the search stops at about this time and uses what it has.
        replies: whether free-running replies are judged as well.
        compare_policies: whether time is kept for a comparison with rival policies.

    Raises:
        UsageError: a value is outside its range.
    """

    target_drop: float
    units: UnitChoice = "auto"
    order: Literal["influence", "greedy", "prompt", "auto"] = "auto"
    confidence: float = 0.9
    reply_tokens: int = 256
    seed: int = 0
    max_seconds: float = 600.0
    replies: bool = False
    compare_policies: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.target_drop <= 1:
            raise UsageError(
                (Setting("target_drop"), f" is {self.target_drop:.6g}"),
                "it must be above 0% and at most 100%",
            )
        if not 0.5 < self.confidence <= 0.99:
            raise UsageError(
                (Setting("confidence"), f" is {self.confidence:g}"),
                "it must be above 0.5 and at most 0.99: a few dozen documents support no more",
            )
        if self.reply_tokens < 2:
            raise UsageError(
                (Setting("reply_tokens"), f" is {self.reply_tokens}"), "it must be at least 2"
            )
        if not self.max_seconds > 0:
            raise UsageError(
                (Setting("max_seconds"), f" is {self.max_seconds:g}"), "it must be above 0"
            )
