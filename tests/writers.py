"""Functions that write one file again and again, in processes that tests kill.

Each file is long, so that writing it takes time. It repeats one number, so that a mix of two
versions would show.
"""

import itertools
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import tomlkit

from d3cli.base import settings as base_settings
from d3cli.cli.batch.results import ToFile
from d3cli.cli.output import Output
from d3cli.cli.profile.destination import Destination, Format
from d3cli.decode import transcript
from d3cli.decode.transcript import ChatMessage
from d3cli.depth import calibration_store
from d3cli.depth.calibration_record import Calibration, ModelKey
from d3cli.depth.draft_record import DraftCalibration
from d3cli.kernels.choice_file import read_machines
from d3cli.kernels.choices import DAMAGED, KernelChoices
from d3cli.kernels.products import Products
from tests.kernels.conftest import measured, meters
from tests.records import DRAFTS, FOUND, KEY

LONG = 2000
ROWS = 30  # of a batch


def _key() -> ModelKey:
    return replace(KEY, dtype="float32")


def _numbers(count: str | None) -> "range | itertools.count[int]":
    return range(int(count)) if count else itertools.count()


def _name(count: str | None) -> str:
    """One name for a process that will be killed, one per process for those that write at once."""
    return f"mine-{os.getpid()}" if count else "mine"


def calibration(folder: str, count: str | None = None) -> None:
    for number in _numbers(count):
        settings = {f"s{i}": number for i in range(LONG)}
        calibration_store.save(_key(), replace(FOUND, settings=settings))
        if count:
            assert isinstance(calibration_store.find(_key()), Calibration)


def conversation(folder: str, count: str | None = None) -> None:
    path = transcript.path_of(_name(count))
    for number in _numbers(count):
        transcript.write(path, [ChatMessage("user", str(number))] * LONG)
        if count:
            transcript.all_conversations()


def drafts(folder: str, count: str | None = None) -> None:
    for number in _numbers(count):
        settings = {f"s{i}": number for i in range(LONG)}
        calibration_store.save_drafts(_key(), replace(DRAFTS, settings=settings))
        if count:
            assert isinstance(calibration_store.find_drafts(_key()), DraftCalibration)


def kernels(folder: str, count: str | None = None) -> None:
    """Chooses kernels for shapes of this process' own; each choice rewrites the whole file."""
    os.environ["D3_KERNELS"] = "auto"
    found = measured(Products())
    for number in _numbers(count):
        choices = KernelChoices(meters(lambda *_: found), lambda: False)
        assert choices.prepare([("bfloat16", os.getpid(), number + 1)]) == 1, choices.notes
        assert choices.notes[0] != DAMAGED or not number


def results(folder: str, count: str | None = None) -> None:
    """Writes the results of batches, each with so many rows, and begins anew."""
    path = Path(folder) / "results.jsonl"
    for number in _numbers(count):
        path.unlink(missing_ok=True)
        file = _results_file(path)
        for index in reversed(range(ROWS)):  # so that the end of a run puts them in order
            file.add(index, {"index": index, "text": f"{index} " * LONG, "number": number})
        file.end(ROWS)


def _results_file(path: Path) -> ToFile:
    return ToFile(path, [str(index) for index in range(ROWS)], "settings")


def trace(folder: str, count: str | None = None) -> None:
    """Writes as `d3 profile` does. The content does not matter."""
    output = Output()
    destination = Destination(Format.json, Path(folder) / "trace.json")
    for number in _numbers(count):
        destination.write(output, json.dumps([number] * LONG))


def settings(folder: str, count: str | None = None) -> None:
    path = base_settings.config_file()
    base_settings.make_directory(path.parent)
    if not count:
        base_settings.replace_file(path, "# a comment\n" * LONG)
    for number in _numbers(count):
        base_settings.save_setting("model", f"org/{number}")
        base_settings.load_settings()


def at_once(folder: str, kind: str, count: str) -> None:
    """Three processes write the same file at once. Fails if one of them does."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=globals()[kind], args=(folder, count)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]


def check(folder: str, kind: str, count: str | None = None) -> None:
    """Fails unless the file that is there is one whole version.

    Args:
        count: how often each process has written that ended in order.
    """
    home = Path(folder)
    if kind == "calibration":
        found = calibration_store.find(_key())
        assert found is None or isinstance(found, Calibration), found
        assert found is None or len(found.settings) == LONG
        assert found is None or len(set(found.settings.values())) == 1
    elif kind == "drafts":
        drafted = calibration_store.find_drafts(_key())
        assert drafted is None or isinstance(drafted, DraftCalibration), drafted
        assert drafted is None or len(drafted.settings) == LONG
        assert drafted is None or len(set(drafted.settings.values())) == 1
    elif kind == "kernels":
        chosen = [choice for machine in read_machines() for choice in machine.choices]
        for process in {choice.out_features for choice in chosen}:
            mine = sorted(one.in_features for one in chosen if one.out_features == process)
            assert mine == list(range(1, int(count or len(mine)) + 1)), mine  # none was lost
    elif kind == "results":
        path = home / "results.jsonl"
        finished = _results_file(path).finished  # removes half a line of one that was killed
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert {row["index"] for row in rows} == finished
        assert all(row["text"] == f"{row['index']} " * LONG for row in rows)
        assert len({row["number"] for row in rows}) < 2
    elif kind == "conversation":
        for summary in transcript.all_conversations():
            messages = transcript.read(transcript.path_of(summary.id))
            assert len(messages) == LONG
            assert len({message.content for message in messages}) == 1
    elif kind == "trace":
        path = home / "trace.json"
        numbers = json.loads(path.read_text()) if path.exists() else [0] * LONG
        assert len(numbers) == LONG
        assert len(set(numbers)) == 1
    else:
        path = base_settings.config_file()
        if path.exists():
            tomlkit.parse(path.read_text())
            base_settings.load_settings()
