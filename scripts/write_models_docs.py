"""Writes docs/models.md from the table of families: python scripts/write_models_docs.py."""

from collections import defaultdict
from pathlib import Path

from d3cli.depth.families import CANNOT_SKIP, FAMILIES

TARGET = Path(__file__).parent.parent / "docs" / "models.md"

HEAD = """# Models

Written by `scripts/write_models_docs.py` from the table in `d3cli/depth/families.py`. Do not edit.

## Supported

Each family is proven by `tests/model/test_families.py` on a tiny random model, in float32: full
depth gives the tokens of `model.generate`; decayed decoding equals a slow reference without gate
and cache; one-pass scoring equals token-by-token decoding, alone and in unequal batches; a repaired
cache equals the full model's. No real checkpoint of these families was run.

| `model_type` | models | units | attention |
|---|---|---|---|
"""

NOTES = """
LongRoPE models (Phi-3 128k and others) stop at their original context: beyond it they change to a
second rotary table, and cached keys would no longer agree with computed ones. Of a mixture of
experts, byte ratios count the experts that a token is routed to.

## Refused

Any other decoder that transformers knows runs at full depth only, with `--alpha off`, after a trial
against transformers' own results. These are refused for a reason that will not go away:

"""


def models_docs() -> str:
    """The whole page."""
    rows = [
        f"| `{name}` | {family.models} | "
        f"{'layers, sublayers' if family.has_sublayers else 'layers'} | {family.attention} |\n"
        for name, family in FAMILIES.items()
    ]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in CANNOT_SKIP.items():
        reasons[reason].append(f"`{name}`")
    refused = [f"- {', '.join(names)}: {reason}.\n" for reason, names in reasons.items()]
    return HEAD + "".join(rows) + NOTES + "".join(refused)


if __name__ == "__main__":
    TARGET.write_text(models_docs(), encoding="utf-8")
    print(f"wrote {TARGET}")
