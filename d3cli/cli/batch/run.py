"""One run of ``d3 generate --input``: starts a reply for each row, and keeps what is finished."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.base.errors import D3Error, GenerationError, NotEnoughMemoryError, Words, spelled
from d3cli.cli import signals
from d3cli.cli.batch.results import Results, ToFile, ToStdout, in_use
from d3cli.cli.batch.rows import InputRow, longest, most_tokens
from d3cli.cli.output import Output
from d3cli.cli.prompts import estimate_tokens
from d3cli.cli.reply_json import SCHEMA, reply_as_json
from d3cli.cli.request import Ready
from d3cli.files.names import find_on_disk

if TYPE_CHECKING:
    from d3cli.decode.reply import Reply
    from d3cli.decode.session import Engine


# Remarks about rows that are shown; the results have all errors.
MOST_NOTES = 10


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What a batch needs besides the options of a reply.

    Attributes:
        model: what the user calls the model.
        revision: of a model on the hub.
        system: the system prompt of rows that have none.
        raw: use no chat template.
        target: the file of results; None for stdout.
        size: rows that are written together; None is as many as are fastest.
        force: take memory that is not free.
    """

    model: str
    revision: str | None
    system: str | None
    raw: bool
    target: Path | None
    size: int | None
    force: bool


def run_batch(output: Output, ready: Ready, rows: Sequence[InputRow], asked: BatchOptions) -> None:
    """Writes the replies to all rows that are not finished.

    Raises:
        GenerationError: rows failed; the results say why.
        WriteError: a result cannot be written.
        UsageError: the file of results belongs to other rows or options.
        Stopped: a signal arrived; what was finished until then is kept.
    """
    try:
        signals.stop_in_order()
        signals.stop_once()  # a second signal must not interrupt what the first one left to do
        with ExitStack() as held:
            results: Results = ToStdout(output)
            if asked.target is not None:
                held.enter_context(in_use(asked.target))
                settings = _settings_hash(ready, asked)
                results = ToFile(asked.target, [row.digest for row in rows], settings)
            batch = Batch(output, ready, rows, asked, results)
            if finished := len(results.finished):
                output.note(f"{finished:,} of {len(rows):,} prompts are finished already")
            if batch.to_do:
                batch.run()
    finally:
        signals.exit_at_once()


class Batch:
    """The rows of one run.

    Attributes:
        to_do: the numbers of the rows that are not finished, from 0.
    """

    def __init__(
        self,
        output: Output,
        ready: Ready,
        rows: Sequence[InputRow],
        asked: BatchOptions,
        results: Results,
    ) -> None:
        self._output, self._ready, self._rows, self._asked = output, ready, rows, asked
        self._results = results
        self.to_do = [index for index in range(len(rows)) if index not in results.finished]
        self._drafter = ready.new_drafter()
        self._free: list[Engine] = []  # engines whose row has ended; they keep common beginnings
        self._engines: dict[int, Engine] = {}  # those of the rows that are being written
        self._indices: dict[int, int] = {}  # of the rows, by their replies' identities
        self._failed = self._tokens = self._done = 0
        self._notes: set[str] = set()
        self._began = time.perf_counter()

    def run(self) -> None:
        """Writes all rows; raises as `run_batch` does."""
        size = self._size()
        self._began = time.perf_counter()
        try:
            self._output.progress.follow(self._write(size))
        finally:
            with signals.deferred():
                self._results.end(len(self._rows))
                if self._done:
                    self._output.note(self._figures(size))
                self._tell_what_remains()
            signals.check()
        if self._failed:
            again = "" if isinstance(self._results, ToFile) else "with --output-file, "
            raise GenerationError(
                f"{self._failed:,} of {len(self._rows):,} prompts failed",
                f'their results have an "error"; {again}the same command tries them alone again',
            )

    def _write(self, size: int) -> Iterator[tuple[str, float]]:
        """Writes all rows; yields what is being done, and the share that is done."""
        from d3cli.decode.batch import write_together

        yield self._progress()
        for reply, news in write_together(self._replies(), size):
            signals.check()
            if isinstance(news, D3Error):
                self._keep_error(self._end(reply), news)
            elif news.finish_reason is None:
                self._tokens += 1
                yield self._progress()
                continue
            else:
                self._tokens += 1
                self._keep(reply)
            yield self._progress()

    def _replies(self) -> Iterator["Reply"]:
        """A reply for each row; a row that cannot be asked at all gets its error at once."""
        for index in self.to_do:
            engine = self._free.pop() if self._free else self._new_engine()
            try:
                reply = self._start(engine, self._rows[index])
            except D3Error as error:
                self._free.append(engine)
                self._keep_error(index, error)
                continue
            self._indices[id(reply)], self._engines[index] = index, engine
            yield reply

    def _new_engine(self) -> "Engine":
        from d3cli.decode.session import Engine

        return Engine(self._ready.model)

    def _start(self, engine: "Engine", row: InputRow) -> "Reply":
        """The reply to a row, as ``d3 generate`` starts one."""
        ready, raw = self._ready, self._asked.raw
        ready.model.influence.forget()  # other rows must not decide the order of a short prompt
        sampling = ready.sampling
        if row.seed is not None:
            sampling = replace(sampling, seed=row.seed)
        return engine.stream(
            row.prompt if raw and row.prompt else row.conversation(self._asked.system),
            schedule=ready.schedule,
            sampling=sampling,
            max_tokens=row.max_tokens or ready.request.max_tokens,
            stop=ready.request.stop,
            chat_template=ready.request.chat_template,
            think=ready.think,
            raw=raw,
            drafter=self._drafter,
        )

    def _keep(self, reply: "Reply") -> None:
        """Keeps the result of a reply that has ended."""
        from d3cli.decode.conversation import inside

        index = self._end(reply)
        for note in reply.notes:
            self._note(note)
        self._add(index, reply_as_json(reply, inside(reply), self._ready))

    def _keep_error(self, index: int, error: D3Error) -> None:
        message, hint = error.told(self._output.spell)
        self._note(f"the prompt of index {index:,} failed: {message}")
        self._add(index, {"schema": SCHEMA, "error": message, "hint": hint or None})

    def _add(self, index: int, result: dict[str, Any]) -> None:
        own = {"index": index, "id": self._rows[index].id}
        with signals.deferred():
            self._results.add(index, own | result)
            if "error" in result:
                self._failed += 1
            else:
                self._done += 1
        signals.check()

    def _end(self, reply: "Reply") -> int:
        """Frees the engine of a reply that has ended; returns the number of its row."""
        index = self._indices.pop(id(reply))
        self._free.append(self._engines.pop(index))
        return index

    def _note(self, words: Words) -> None:
        """Writes a remark, once for all rows that it is about; no more than a few of them."""
        text = spelled(words, self._output.spell)
        if text not in self._notes and len(self._notes) < MOST_NOTES:
            self._notes.add(text)
            self._output.note(text)
            if len(self._notes) == MOST_NOTES:
                self._output.note("further remarks are left out")

    def _progress(self) -> tuple[str, float]:
        done = self._done + self._failed
        rest = len(self._rows) - len(self.to_do)
        return f"{rest + done:,} of {len(self._rows):,} prompts", done / len(self.to_do)

    def _tell_what_remains(self) -> None:
        """Says, in a run that ends early, how much is finished and how to go on."""
        if self._done + self._failed < len(self.to_do):
            to_file = isinstance(self._results, ToFile)
            go_on = "; the same command writes the others" if to_file else ""
            finished = len(self._rows) - len(self.to_do) + self._done
            self._output.note(f"{finished:,} of {len(self._rows):,} prompts are finished{go_on}")

    def _figures(self, size: int) -> str:
        seconds = time.perf_counter() - self._began
        together = f", {size} at a time" if size > 1 else ""
        prompts = "prompt" if self._done == 1 else "prompts"
        return (
            f"{self._done:,} {prompts}{together} · {self._tokens:,} tokens · "
            f"{self._tokens / seconds:.1f} tok/s"
        )

    def _size(self) -> int:
        """How many rows are written together.

        Raises:
            NotEnoughMemoryError: the KV caches of as many as were asked for do not fit.
        """
        from d3cli.decode.batch import best_size
        from d3cli.model.decoder_pass import MOST_TOKENS
        from d3cli.model.kv_cache import DEFAULT_RESERVE
        from d3cli.model.memory import rows_that_fit

        model, asked = self._ready.model, self._asked.size
        if self._drafter is not None or asked == 1:
            return 1
        rows = [self._rows[index] for index in self.to_do]
        reply_tokens = most_tokens(rows, self._ready.request.max_tokens)
        prompt_tokens = estimate_tokens(longest(rows, self._asked.system))
        positions = prompt_tokens + (DEFAULT_RESERVE if reply_tokens is None else reply_tokens)
        config, dtype = model.causal_lm.config, model.causal_lm.dtype
        fit = 1 + rows_that_fit(config, dtype, model.device, min(positions, model.context_length))
        if asked is None:
            size = best_size(model, min(len(rows), fit, MOST_TOKENS))
            if size > 1:
                self._output.note(f"{size} prompts are written together: the fastest here")
            return size
        if asked > fit and not self._asked.force:
            raise NotEnoughMemoryError(
                f"the KV caches of {asked} prompts do not fit into the free memory, those of "
                f"{fit} do",
                f"use --batch-size {fit}, or auto; --force tries it anyway",
            )
        if model.blocks is None:
            self._output.note("this model reads one token a pass here, so a batch is not faster")
            return 1
        return min(asked, len(rows))


def _settings_hash(ready: Ready, asked: BatchOptions) -> str:
    """Tells whether anything but the rows has changed: 16 digits of a SHA-256."""
    files, request = find_on_disk(asked.model, asked.revision), ready.request
    drafting = request.drafting
    everything = {
        "model": None if files is None else [files.identity, files.revision, files.fingerprint()],
        "form": [ready.model.dtype, ready.model.origin.quantization],
        "schedule": ready.schedule.to_json(),
        "sampling": asdict(ready.sampling),
        "max_tokens": request.max_tokens,
        "stop": request.stop,
        "system": asked.system,
        "chat_template": request.chat_template,
        "think": ready.think,
        "raw": asked.raw,
        "lossless": None if drafting is None else [drafting.source, drafting.model],
        "context": ready.model.context_length,
    }
    text = json.dumps(everything, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
