"""Work for ``scripts/soak.py``: jobs from stdin, one JSON line each, done one after the other.

The process lives for hours and does every job again and again; a fresh one, given a job that the
old one did, must give the same outputs.
"""

import ctypes
import gc
import json
import random
import sys
from contextlib import suppress
from typing import Any

from bench_calibration import calibrated, drop_on
from soak_serve import conversations

from d3cli.base.errors import CalibrationError
from d3cli.base.settings import BUILTIN
from d3cli.calibrate.forms import ModelForms, load_forms
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.texts import builtin_samples, encode_samples
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.kernels.process import trim_memory
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel

Job = dict[str, Any]

ALPHAS = ("off", "auto", 0.999, 0.99, 0.97, 0.9)
TURNS = 6  # of a conversation: so many fit into the built-in model's context
SCORED, SEARCHED = 4, 80  # documents that a schedule is scored on, and that a search gets
SEARCH_S = {False: 60.0, True: 180.0}  # of one form of the weights, of all


def prompts_of(model: LoadedModel) -> list[str]:
    """What the built-in model's held-out texts ask."""
    messages = [message for sample in builtin_samples(model) for message in sample.messages]
    return [message["content"] for message in messages if message["role"] == "user"]


def replies_job(rng: random.Random, prompts: list[str], turns: int) -> Job:
    """A conversation of so many turns, each with how to answer it."""
    lossless = rng.random() < 0.3
    return {
        "kind": "replies",
        "lossless": rng.choice(("auto", "lookup", "depth")) if lossless else None,
        "turns": [
            {
                "text": rng.choice(prompts),
                "alpha": rng.choice(ALPHAS),
                "temperature": rng.choice((0.0, 0.8)),
                "seed": rng.randrange(1 << 30),
                "max_tokens": rng.randint(8, 64),
            }
            for _ in range(turns)
        ],
    }


def calibration_job(rng: random.Random, *, forms: bool) -> Job:
    """A calibration; with `forms`, other forms of the weights are loaded and tried."""
    return {
        "kind": "calibration",
        "forms": forms,
        "alpha": rng.choice((0.999, 0.99, 0.97)),
        "seed": rng.randrange(100),
    }


def replies(model: LoadedModel, job: Job) -> list[str]:
    """The replies of a conversation, as text."""
    engine, messages, said = Engine(model), [], []
    source = job["lossless"]
    drafter = Drafter.for_model(model, source) if source else None
    for turn in job["turns"]:
        messages.append({"role": "user", "content": turn["text"]})
        reply = engine.stream(
            messages,
            schedule=model.schedule(turn["alpha"]),
            sampling=SamplingParams(temperature=turn["temperature"], seed=turn["seed"]),
            max_tokens=turn["max_tokens"],
            drafter=drafter,
        )
        for _ in reply:
            pass
        said.append(reply.text)
        messages.append({"role": "assistant", "content": reply.text})
    return said


def calibration(model: LoadedModel, job: Job) -> list[float]:
    """Searches for some seconds, then scores one schedule, whose drop is the output.

    What a search finds depends on the clock; what a schedule costs does not.
    """

    def load(quantization: Any) -> LoadedModel:
        return load_model(dtype="float32", device="cpu", threads=1, quantization=quantization)

    forms = load_forms(load) if job["forms"] else ModelForms(model)
    texts = encode_samples(model, builtin_samples(model))[:SEARCHED]
    settings = CalibrationSettings(0.05, seed=job["seed"], max_seconds=SEARCH_S[job["forms"]])
    with suppress(CalibrationError):  # a busy machine may lack the time
        calibrated(forms, texts, settings)
    return [drop_on(ModelForms(model), texts[:SCORED], model.schedule(job["alpha"]))]


class _Mallinfo2(ctypes.Structure):
    """As in glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def heap_in_use() -> int:
    """Bytes that the program has from malloc and has not freed; 0 where malloc does not tell."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # no glibc, or one before 2.33
        return 0
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def done(model: LoadedModel, job: Job) -> list[Any]:
    """The output of a job."""
    match job["kind"]:
        case "calibration":
            return calibration(model, job)
        case "replies":
            return replies(model, job)
        case _:
            # for the clients of a server: conversations with its replies; and what people ask
            return [conversations(BUILTIN, job["count"], random.Random(1)), prompts_of(model)]


def main() -> None:
    model = load_model(dtype="float32", device="cpu", threads=1)
    for line in sys.stdin:
        job = json.loads(line)
        model.influence.forget()  # what earlier jobs sent decides no reply
        output = done(model, job)
        gc.collect()  # what waits for it is no leak
        trim_memory()  # nor is what malloc keeps for later
        state = {"heap": heap_in_use(), "python_blocks": sys.getallocatedblocks()}
        print(json.dumps({"output": output, "state": state}), flush=True)


if __name__ == "__main__":
    main()
