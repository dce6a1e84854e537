"""Faults of ``d3-lm-eval``, for ``scripts/faults.py``: signals, and models that are damaged."""

import atexit
import importlib.util
import json
import math
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fault_runs import FOLDER, ImpossibleError, problems
from safetensors.torch import load_file, save_file

from tests.conftest import BUILTIN_PATH
from tests.forks import Forks

TASKS = FOLDER / "tasks"
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
doc_to_text: "{{{{question}}}}\\n"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
"""
CHOICE = """output_type: multiple_choice
doc_to_choice: "{{choices}}"
"""
REPLY = """output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 16}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


@cache
def _write_tasks() -> None:
    """Writes a task of choices and one of replies, which need no network.

    Raises:
        ImpossibleError: the harness is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ImpossibleError('lm-evaluation-harness is not installed: pip install "d3cli[eval]"')
    TASKS.mkdir()
    sums = [{"question": f"{n} + 2 = ?", "answer": f"The answer is {n + 2}."} for n in range(9)]
    milk = {"question": "Who gives us milk?", "choices": ["The cow.", "The owl."], "answer": 0}
    for name, rows, kind in (("animals", [milk] * 4, CHOICE), ("sums", sums, REPLY)):
        path = TASKS / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (TASKS / f"{name}.yaml").write_text(TASK.format(name=name, rows=path) + kind)


@cache
def _harness() -> Forks:
    """Starts children that need not import the harness, which takes seconds."""
    forks = Forks("lm_eval.__main__", "d3cli.evals.harness")
    atexit.register(forks.__exit__)
    return forks.__enter__()


def evals(forks: Forks, rng: random.Random) -> Iterator[str]:
    """A signal at a random moment of an evaluation, or a model that lacks a file or is not finite.

    Without a damaged model it ends with results or by the signal, else with an error of d3.
    """
    _write_tasks()
    how = rng.choice(("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "no file", "not finite", "none"))
    settings: dict[str, Any] = {}
    if how.startswith("SIG"):
        settings = {"signal": int(getattr(signal, how)), "after": rng.uniform(0, 6)}
    with tempfile.TemporaryDirectory() as folder:
        model = _damaged_model(Path(folder), how, rng)
        words = [f"--model_args=pretrained={model},dtype=float32,threads=1,alpha=0.99,start=4"]
        words += ["--include_path", str(TASKS), "--tasks", rng.choice(("animals", "sums"))]
        env = {"D3_HOME": folder, "HF_HOME": folder, "HF_DATASETS_OFFLINE": "1"}
        ended = _harness().call("tests.harness_command.run", *words, env=env, **settings)
        forks.codes[ended.code] += 1
        if ended.code == -settings.get("signal", 0) < 0 and "Traceback" not in ended.err:
            return  # the harness has no handlers, so the system ends it
        is_damaged = how in ("no file", "not finite")
        found = list(problems(ended, may_fail=is_damaged))
        if is_damaged and not ended.code:
            found.append(f"has results: {ended.out[-300:]}")
        yield from (f"{how} {settings.get('after', '')}: {words[-1]}: {one}" for one in found)


def _damaged_model(folder: Path, how: str, rng: random.Random) -> Path:
    """The model to evaluate: a copy of the built-in one, damaged if the fault is that."""
    model = folder / "model"
    shutil.copytree(BUILTIN_PATH, model)
    if how == "no file":
        names = ("config.json", "model.safetensors", "tokenizer.json")
        (model / rng.choice(names)).unlink()
    elif how == "not finite":
        tensors = load_file(model / "model.safetensors")
        tensors["model.norm.weight"].fill_(math.nan)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model
