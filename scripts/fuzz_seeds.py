"""Valid files of d3's own, one of each schema, from which a fuzzer starts."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from fuzz_common import FOLDER

if TYPE_CHECKING:
    from d3cli.profile.trace import Trace


def traces() -> list[bytes]:
    """Traces of schema 1, and of schema 3: plain, lossless, of nested weights, by prompt order."""
    from d3cli.profile.trace_file import to_json
    from tests.traces import as_schema_1, made_lossless_trace, made_trace, nested_trace

    plain = made_trace([4, 4, 3], [10.0, 9.0])
    made = plain, made_lossless_trace(), nested_trace(), _in_its_own_order(plain)
    written = [to_json(trace) for trace in made]
    return [json.dumps(data).encode() for data in (*written, as_schema_1(written[0]))]


def _in_its_own_order(trace: "Trace") -> "Trace":
    """The same reply, where the prompt has decided the order."""
    from d3cli.depth.prompt_order import PromptSchedule

    schedule = PromptSchedule(4, 0.9, 0, 1, 1, ("1", "2")).to_json() | {"source": "flags"}
    (reply,) = trace.replies
    return replace(trace, schedule=schedule, replies=(replace(reply, skip_order=("1", "2")),))


def calibrations() -> list[bytes]:
    """A file of each schema: of replies, in each prompt's order, with a choice, with drafts."""
    from d3cli.depth.calibration_file import StoredFile, stored_text
    from d3cli.depth.calibration_record import Entry, Rival
    from d3cli.depth.draft_record import DraftEntry
    from d3cli.depth.prompt_order import PromptSchedule
    from tests.records import DRAFTS, FOUND, KEY

    nested = replace(KEY, quantization="nested")
    rival = Rival("constant depth", "bfloat16 int8", "8 of 16 layers", 0.01, (0.0, 0.02), 1.2, 1.1)
    order = PromptSchedule(16, 0.98, 8, 4, 4, tuple(map(str, range(4, 12))))
    chosen = replace(
        FOUND, against="bfloat16", speed=1.5, rivals=(rival,), why_not_as_stored="it is slower"
    )
    entries = (
        (Entry(KEY, FOUND),),
        (Entry(KEY, replace(FOUND, schedule=order)),),
        (Entry(KEY, FOUND), Entry(nested, chosen)),
    )
    files = [StoredFile(FOLDER, KEY.model, each) for each in entries]
    files[2] = replace(files[2], choice=nested.form)
    files.append(replace(files[2], drafts=(DraftEntry(nested, DRAFTS),)))
    return [stored_text(file).encode() for file in files]
