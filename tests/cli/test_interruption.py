"""Signals, full disks and failures in the middle of a reply: what was written stays."""

import itertools
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from d3cli.base.errors import GenerationError
from d3cli.cli.signals import Stopped
from d3cli.decode.loop import DecodedToken, decode
from tests.conftest import D3, check
from tests.forks import Forks
from tests.processes import d3_process

STORY = "Tell me a story about a fox."


class TestInterruption:
    @pytest.mark.parametrize(
        ("number", "code"),
        [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
        ids=["HUP", "INT", "TERM"],
    )
    def test_the_partial_text_stays(self, number: signal.Signals, code: int, forks: Forks) -> None:
        sampled = ("generate", STORY, "--temp", "1", "--seed", "3")
        ended = forks.run(*sampled, signal=number, after_out=10)
        assert ended.code == code
        assert ended.out.endswith("\n")
        assert "Traceback" not in ended.err
        assert "stopped: interrupted" in ended.err

    @pytest.mark.parametrize(
        ("number", "code", "after"),
        [
            *((signal.SIGINT, 130, after) for after in (0.0, 0.1, 0.2, 0.4)),
            *((signal.SIGTERM, 143, after) for after in (0.05, 0.3, 0.6)),
        ],
    )
    def test_a_signal_at_any_moment_is_quiet(
        self, number: signal.Signals, code: int, after: float, forks: Forks
    ) -> None:
        ended = forks.run("generate", STORY, "--temp", "1", signal=number, after=after)
        assert ended.code in (code, 0, -number)  # 0 if it was quicker, negative before it began
        assert "Traceback" not in ended.err

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("number", "code", "delay"),
        [
            *((signal.SIGINT, 130, delay) for delay in (0.0, 0.6, 1.4)),
            *((signal.SIGTERM, 143, delay) for delay in (0.3, 1.0)),
        ],
    )
    def test_a_signal_at_any_moment_of_importing_is_quiet(
        self, number: signal.Signals, code: int, delay: float
    ) -> None:
        process = d3_process("generate", STORY, "--temp", "1", bufsize=0)
        assert process.stderr is not None
        process.stderr.readline()  # "model: ...": from now on it loads
        time.sleep(delay)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (code, 0)  # 0: it was quicker
        assert b"Traceback" not in err
        assert b"terminate called" not in err

    @pytest.mark.parametrize(("error", "code"), [(Stopped(2), 130), (GenerationError("step 5"), 1)])
    def test_json_is_whole_when_generation_breaks_off(
        self,
        d3: D3,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException | type[BaseException],
        code: int,
    ) -> None:
        def broken_off(*arguments: object, **options: object) -> Iterator[DecodedToken]:
            yield from itertools.islice(decode(*arguments, **options), 5)  # type: ignore[arg-type]
            raise error

        monkeypatch.setattr("d3cli.decode.reply.decode", broken_off)
        result = d3("generate", STORY, "--json")
        data = json.loads(result.out)
        assert result.code == code
        assert data["finish_reason"] == "interrupted"
        assert len(data["tokens"]) == data["stats"]["completion_tokens"] == 5
        assert data["text"]

    def test_an_interruption_with_a_dead_pipe_is_still_an_interruption(self, forks: Forks) -> None:
        sampled = ("generate", STORY, "--temp", "1", "--seed", "3")
        ended = forks.run(*sampled, signal=signal.SIGINT, after_out=10, close_out=10)
        assert "Traceback" not in ended.err
        assert ended.code in (130, 0)  # 0 if it saw the closed pipe first

    def test_memory_that_runs_out_is_one_clear_line(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("d3cli.cli.loading.load_announced", full)
        result = d3("generate", STORY)
        check(result, 1, "out of memory: CUDA out of memory")
        assert "bnb-4bit" in result.err

    def test_memory_that_runs_out_while_loading_is_not_the_files_fault(
        self, d3: D3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("d3cli.model.check.model_class", full)
        result = d3("generate", STORY)
        check(result, 1, "out of memory")
        assert "damaged" not in result.err

    def test_a_closed_pipe_is_quiet(self, forks: Forks) -> None:
        ended = forks.run("generate", STORY, close_out=5)
        assert ended.code == 0
        assert "error" not in ended.err
        assert "Broken" not in ended.err

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    @pytest.mark.parametrize("extra", [[], ["--json"]])
    def test_a_full_disk_is_one_clear_error(self, extra: list[str], forks: Forks) -> None:
        ended = forks.run("generate", STORY, "--max-tokens", "5", *extra, out="/dev/full")
        assert ended.code == 1
        assert "cannot write to standard output: No space left" in ended.err
        assert "Traceback" not in ended.err
        assert "Exception ignored" not in ended.err
