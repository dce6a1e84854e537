"""Draws the training loss of the demo model as an SVG, from the log of `train_demo_model.py`.

Usage: python scripts/plot_loss.py build/demo/loss.jsonl docs/demo-model-loss.svg
"""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 640, 280, 58, 44, 14
TICKS = (0.1, 0.2, 0.5, 1, 2, 5)


def draw(rows: list[dict[str, float]]) -> str:
    """Loss, on a logarithmic scale, against tokens; dashed lines where the data changes."""
    last = rows[-1]["seen"]
    low = math.log(min(row["loss"] for row in rows) * 0.9)
    high = math.log(max(row["loss"] for row in rows) * 1.1)

    def x(tokens: float) -> float:
        return LEFT + tokens / last * (WIDTH - LEFT - MARGIN)

    def y(loss: float) -> float:
        share = (math.log(loss) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for tick in (t for t in TICKS if low < math.log(t) < high):
        at = f"{y(tick):.1f}"
        parts.append(
            f'<line x1="{LEFT}" y1="{at}" x2="{WIDTH - MARGIN}" y2="{at}" stroke="#dddddd"/>'
            f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for millions in range(0, int(last / 1e6) + 1, 5):
        at = f"{x(millions * 1e6):.1f}"
        parts.append(
            f'<line x1="{at}" y1="{MARGIN}" x2="{at}" y2="{HEIGHT - BOTTOM}" stroke="#dddddd"/>'
            f'<text x="{at}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{millions}</text>'
        )
    for row, following in pairwise(rows):
        if row["part"] != following["part"]:
            at = f"{x(row['seen']):.1f}"
            parts.append(
                f'<line x1="{at}" y1="{MARGIN}" x2="{at}" y2="{HEIGHT - BOTTOM}" '
                'stroke="#888888" stroke-dasharray="4 3"/>'
            )
    points = " ".join(f"{x(row['seen']):.1f},{y(row['loss']):.1f}" for row in rows)
    parts += [
        f'<polyline points="{points}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>',
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        "million tokens</text>",
        f'<text x="14" y="{(HEIGHT - BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(HEIGHT - BOTTOM) / 2})">loss, nats per reply token</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    log, target = map(Path, sys.argv[1:])
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    target.write_text(draw(rows))


if __name__ == "__main__":
    main()
