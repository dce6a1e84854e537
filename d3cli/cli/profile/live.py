"""The live screen of a profiled run: a table of tokens, and figures above it.

Only draws. Knows nothing of how the figures are measured.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import set_cell_size
from rich.console import RenderableType
from rich.segment import Segment, Segments
from rich.style import Style

from d3cli.base.amounts import readable_size
from d3cli.base.inert import inert, quoted
from d3cli.cli.format import WIDEST_TEXT, cut, draft_figures, fixed
from d3cli.depth.calibration_record import form_in_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from d3cli.depth.prompt_order import Schedule
    from d3cli.model.model import LoadedModel
    from d3cli.profile.run import Run

# Seconds between two drawings, and the largest share of the time spent on drawing, which competes
# with decoding for the processor.
MIN_INTERVAL, MAX_SHARE = 0.1, 1 / 64
BLOCKS, PLAIN_BLOCKS = " ▁▂▃▄▅▆▇█", "  ..::||#"
CURVE_TOKENS = 64  # the smallest number of tokens along the curve
MAX_ROWS = 512
TALL, WIDE = 16, 80  # the curve needs this many lines, all columns of the table this many cells
FIXED, FIXED_WIDE = 23, 50  # cells of the table without token and bar
MARKS = {"lookup": "l", "depth": "d", "model": "m", None: "."}  # of what drafted a token
PLAIN, BOLD, DIM = Style(), Style(bold=True), Style(dim=True)
CYAN, DIM_CYAN = Style(color="cyan"), Style(color="cyan", dim=True)

_Line = list[tuple[str, Style]]  # texts and their styles


@dataclass(frozen=True, slots=True)
class _Row:
    """One token in the table."""

    step: int
    token: str
    depth: float
    ms: float | None
    rate: float | None
    logprob: float
    entropy: float | None
    drafted_by: str | None
    rejected: int  # drafted tokens that were thrown away here


@dataclass(slots=True)
class ProfileView:
    """The screen of one profiled run.

    Args:
        live: where to draw; None draws nothing.
        limit: the most tokens that a reply may have; None without a limit.
        prompts, repeats: their numbers.
    """

    live: "Live | None"
    model: "LoadedModel"
    schedule: "Schedule"
    limit: int | None
    prompts: int
    repeats: int
    _rows: deque[_Row] = field(default_factory=lambda: deque(maxlen=MAX_ROWS))
    _run: "Run | None" = None
    _prompt: int = 0
    _read: int = 0
    _decode_s: float = 0.0
    _due: float = 0.0
    _usage: "_Usage | None" = None

    def begin(self, run: "Run", prompt: int) -> None:
        """Starts a run of a prompt. Prompts are counted from 1."""
        self._rows.clear()
        self._run, self._prompt, self._read, self._decode_s = run, prompt, 0, 0.0
        if self.live is None:
            return
        if self._usage is None:
            self._usage = _Usage(self.model)
            self._draw()
            self._due = 0.0  # the first drawing is slow, so its time does not count
        self._draw_if_due()

    def read(self, tokens: int) -> None:
        """Shows how many tokens of the prompt are read."""
        self._read = tokens
        self._draw_if_due()

    def add(self, run: "Run") -> None:
        """Adds the run's last token."""
        token, spent = run.reply.tokens[-1], run.ms[-1] if run.ms else 0.0
        ms, rejected = spent if token.step else None, 0
        if token.step and run.reply.verifications:
            done = run.reply.verifications[-1]
            at = token.step - done.step
            ms = sum(run.ms[done.step - 1 :]) / done.tokens  # the pass comes with its first token
            rejected = len(done.draft_ids) - done.accepted if at == done.accepted else 0
        self._decode_s += spent / 1000
        rate = token.step / self._decode_s if self._decode_s else None
        text = cut(quoted(run.reply.pieces[-1]))
        self._rows.append(
            _Row(
                token.step,
                text,
                token.depth,
                ms,
                rate,
                token.logprob,
                token.entropy,
                token.drafted_by,
                rejected,
            )
        )
        self._draw_if_due()

    def _draw_if_due(self) -> None:
        if self.live is not None and time.perf_counter() >= self._due:
            self._draw()

    def _draw(self) -> None:
        assert self.live is not None
        began = time.perf_counter()
        self.live.update(self._render(self.live.console), refresh=True)
        ended = time.perf_counter()
        self._due = ended + max(MIN_INTERVAL, (ended - began) / MAX_SHARE)

    def _render(self, console: "Console") -> RenderableType:
        """The whole screen as segments; Rich's own tables take ten times as long to draw."""
        width, height = console.size
        plain = not console.encoding.lower().startswith("utf")
        lines = [[(text, DIM)] for text in self._head(width)]
        if height >= TALL:
            lines += (
                self._sources(width)
                if self._is_lossless
                else self._curve(width, PLAIN_BLOCKS if plain else BLOCKS)
            )
        lines += self._table(width, max(1, height - len(lines) - 1), plain)
        segments: list[Segment] = []
        for line in lines:
            whole = [Segment(inert(text), style) for text, style in line]
            segments += [*Segment.adjust_line_length(whole, width, pad=False), Segment.line()]
        return Segments(segments[:-1])

    def _head(self, width: int) -> list[str]:
        """The lines above the table."""
        run = self._run
        if run is None:
            return []
        stats, done = run.reply.stats, len(run.reply.tokens)
        name = self.model.name if self.model.origin.key is None else f"{self.model.name}, "
        name += "" if self.model.origin.key is None else form_in_words(self.model.origin.key.form)
        place = [f"prompt {self._prompt} of {self.prompts}"] if self.prompts > 1 else []
        if self.repeats > 1:
            place.append(f"repeat {run.number} of {self.repeats}" if run.number else "warming up")
        prompt = f"prompt {len(run.reply.prompt_ids):,} tokens"
        if stats.ttft_s is None:
            prompt += f", {self._read:,} read"
        else:
            prompt += f" · TTFT {stats.ttft_s:.2f} s"
        if stats.mean_depth is not None and stats.lossless is None:
            prompt += f" · layers mean {stats.mean_depth:.1f}, min {stats.min_depth:.4g}"
        depth = f"depth: {self._shown.in_words()}"
        if stats.lossless is not None:
            depth = f"lossless: {draft_figures(stats.lossless)}"
        lines = [
            " · ".join([name, *place]),
            depth,
            prompt,
            self._progress(done, width),
        ]
        if self._usage is not None:
            lines.append(self._usage.words())
        return lines

    @property
    def _is_lossless(self) -> bool:
        return self._run is not None and self._run.reply.drafting is not None

    @property
    def _shown(self) -> "Schedule":
        """The run's schedule; one whose order the prompt decides has it from the first token on."""
        started = self._run is not None and self._run.reply.tokens
        return self._run.reply.schedule if self._run and started else self.schedule

    def _progress(self, done: int, width: int) -> str:
        rate = self._rows[-1].rate if self._rows else None
        speed = "" if rate is None else f" · {rate:.1f} tok/s"
        if self.limit is None:
            return f"{done:,} tokens{speed}"
        filled = round(min(20, max(4, width // 4)) * min(1, done / self.limit))
        bar = "━" * filled + "─" * (min(20, max(4, width // 4)) - filled)
        return f"{bar} {done:,} of at most {self.limit:,}{speed}"

    def _curve(self, width: int, blocks: str) -> list[_Line]:
        """The depth by token from left to right, and the reply's position."""
        layers, step = self.model.num_layers, self._rows[-1].step if self._rows else 0
        tokens = max(CURVE_TOKENS, 2 * self._shown.start, 1 << step.bit_length())
        tokens = max(2, tokens if self.limit is None else min(tokens, self.limit))
        columns = max(1, width - 1)
        now = min(columns - 1, step * columns // tokens)
        depths = [self._shown.depth(column * tokens // columns) for column in range(columns)]
        marks = "".join(blocks[max(1, round(depth / layers * 8))] for depth in depths)
        words = f"token {step:,}: {self._shown.depth(step):.4g} of {layers} layers"
        label = f"{'':{now}}^ {words}"
        if len(label) > width:
            label = f"{words} ^".rjust(now + 1)
        return [[(marks[: now + 1], CYAN), (marks[now + 1 :], DIM_CYAN)], [(label, DIM)]]

    def _sources(self, width: int) -> list[_Line]:
        """What drafted the latest tokens, from left to right, and what the letters mean."""
        shown = list(self._rows)[-max(1, width - 1) :]
        marks = [MARKS[row.drafted_by] for row in shown]
        return [
            [(mark, DIM if mark == MARKS[None] else CYAN) for mark in marks],
            [("drafted by: l lookup, d D³, m draft model; . full depth's own", DIM)],
        ]

    def _table(self, width: int, rows: int, plain: bool) -> list[_Line]:
        """Titles, and the latest tokens."""
        wide = width >= WIDE
        token_width = min(WIDEST_TEXT, max(6, width // 3 if not wide else width // 4))
        others = FIXED_WIDE if wide else FIXED
        bar = max(0, min(24, width - token_width - others))
        end = f"{'tok/s':>8} {'logprob':>9} {'entropy':>8}" if wide else ""
        used = f"{'layers':>6} {'':{bar}}" if not self._is_lossless else f"{'source':<{bar + 7}}"
        titles = f"{'step':>5}  {'token':{token_width}} {used} {'ms':>7}{end}"
        lines: list[_Line] = [[(titles, BOLD)]]
        for row in list(self._rows)[-rows:]:
            filled = round(bar * row.depth / self.model.num_layers)
            token = set_cell_size(row.token, token_width)
            ms = "" if row.ms is None else f"{row.ms:.1f}"
            if wide:
                rate = "" if row.rate is None else f"{row.rate:.1f}"
                end = f"{rate:>8} {row.logprob:>z9.3f} {fixed(row.entropy, 3):>8}"
            cells = [
                (f"{row.depth:>6.4g} ", PLAIN),
                (("#" if plain else "█") * filled + " " * (bar - filled), CYAN),
            ]
            if self._is_lossless:
                source = row.drafted_by or (f"-{row.rejected}" if row.rejected else "")
                cells = [(f"{source:<{bar + 7}}", CYAN if row.drafted_by else DIM)]
            lines.append(
                [
                    (f"{row.step:>5}  {token} ", PLAIN),
                    *cells,
                    (f" {ms:>7}{end}", PLAIN),
                ]
            )
        return lines


class _Usage:
    """Memory and processor use of this process, and memory of its GPU."""

    def __init__(self, model: "LoadedModel") -> None:
        import psutil

        self._process, self._device = psutil.Process(), model.device
        self._process.cpu_percent()  # the first call starts the measurement

    def words(self) -> str:
        text = f"memory {readable_size(self._process.memory_info().rss)}"
        if self._device.type == "cuda":
            import torch

            text += f", GPU {readable_size(torch.cuda.memory_allocated(self._device))}"
        return f"{text} · processor {self._process.cpu_percent():.0f}%"
