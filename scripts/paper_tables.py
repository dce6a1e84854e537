"""Runs GSM8K and BBH as the paper does, at several schedules: scores, mean layers and the clock.

    python scripts/paper_tables.py MODEL --data DIR [--schedules off 0.999 0.99@32] [--limit 20]

Prompts, examples (8 for GSM8K, 3 for BBH, both with chains of thought), stop strings and metrics
are those of lm-evaluation-harness: its tasks gsm8k_cot and bbh_cot_fewshot_*. The questions come
from local files, in the form in which their authors publish them:

    DIR/gsm8k/test.jsonl      github.com/openai/grade-school-math, grade_school_math/data
    DIR/bbh/NAME.json         github.com/suzgunmirac/BIG-Bench-Hard, bbh

A schedule is "off", "auto" or an alpha, and may end in "@START". All run with the same weights.
Only tasks whose files are there run; --tasks names some of them. Prints Markdown.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from scipy.stats import binomtest

from d3cli.base.errors import D3Error
from d3cli.decode.stats import RunStats
from d3cli.evals.harness import D3LM, mean_layers

GSM8K = "gsm8k"
METRICS = {True: "exact_match,strict-match", False: "exact_match,get-answer"}
HEAD = ("task", "schedule", "right", "score (95% interval)", "mean layers", "layers", "tokens/s")


@dataclass
class Result:
    """A task, or all of BBH, at one schedule."""

    right: int = 0
    questions: int = 0
    replies: list[RunStats] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        self.right += other.right
        self.questions += other.questions
        self.replies += other.replies

    @property
    def tokens_per_second(self) -> float:
        """Of all decode steps; the prefill is left out."""
        steps = sum(one.completion_tokens - 1 for one in self.replies)
        return steps / sum(one.decode_s for one in self.replies)


def find_tasks(data: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """The tasks whose files are there, or those of them that are wanted."""
    found = {GSM8K: data / "gsm8k" / "test.jsonl"} if (data / "gsm8k/test.jsonl").exists() else {}
    found |= {path.stem: path for path in sorted((data / "bbh").glob("*.json"))}
    if missing := [name for name in wanted if name not in found]:
        sys.exit(f"there is no file for {', '.join(missing)} in {data}: see --help for its place")
    if not found:
        sys.exit(f"there are no questions in {data}: see --help for what belongs there")
    return {name: path for name, path in found.items() if not wanted or name in wanted}


def write_tasks(tasks: dict[str, Path], directory: Path) -> None:
    """The harness' own tasks as files that include them, with their questions from local files."""
    own = Path(str(files(lm_eval))) / "tasks"
    for name, path in tasks.items():
        source = own / "bbh" / "cot_fewshot" / f"{name}.yaml"
        kwargs: dict[str, Any] = {"data_files": {"test": str(path.absolute())}}
        if name == GSM8K:
            source = own / "gsm8k" / "gsm8k-cot.yaml"
        else:
            kwargs["field"] = "examples"
        task = {
            "include": str(source),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": kwargs,
        }
        # JSON is YAML, too.
        (directory / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")


def run_task(model: D3LM, name: str, given: argparse.Namespace, manager: TaskManager) -> Result:
    """All questions of a task, or the first ones."""
    length = None if given.max_tokens is None else {"max_gen_toks": given.max_tokens}
    before = len(model.replies)
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=manager,
        limit=given.limit,
        gen_kwargs=length,
        bootstrap_iters=0,
        log_samples=False,
    )
    questions = found["n-samples"][name]["effective"]
    right = round(found["results"][name][METRICS[name == GSM8K]] * questions)
    return Result(right, questions, model.replies[before:])


def settings_of(schedule: str) -> dict[str, Any]:
    """The model arguments of a schedule as typed."""
    alpha, _, start = schedule.partition("@")
    try:
        chosen: dict[str, Any] = {"alpha": alpha if alpha in ("off", "auto") else float(alpha)}
        return chosen | ({"start": int(start)} if start else {})
    except ValueError:
        sys.exit(f"{schedule} is no schedule: use off, auto or an alpha, with @START if need be")


def rows(name: str, results: dict[str, Result], layers: int) -> Iterator[tuple[str, ...]]:
    """The rows of a table for one task, one for each schedule."""
    for schedule, one in results.items():
        low, high = binomtest(one.right, one.questions).proportion_ci(method="wilson")
        mean = mean_layers(one.replies)
        yield (
            name,
            schedule,
            f"{one.right} of {one.questions}",
            f"{one.right / one.questions:.1%} ({low:.1%} to {high:.1%})",
            "-" if mean is None else f"{mean:.2f} of {layers}",
            "-" if mean is None else f"{layers / mean:.2f}×",
            f"{one.tokens_per_second:.1f}",
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--schedules", nargs="+", default=["off", "auto"])
    parser.add_argument("--tasks", nargs="+", default=[], help="gsm8k, or names of BBH's files")
    parser.add_argument("--limit", type=int, help="the first questions of each task only")
    parser.add_argument("--max-tokens", type=int, help="instead of each task's own limit")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def run_all(given: argparse.Namespace, directory: Path) -> tuple[dict[str, dict[str, Result]], int]:
    """The results by task and schedule, and the model's number of layers."""
    tasks = find_tasks(given.data, given.tasks)
    settings = {schedule: settings_of(schedule) for schedule in given.schedules}
    write_tasks(tasks, directory)
    manager = TaskManager(include_path=str(directory), include_defaults=False)
    found: dict[str, dict[str, Result]] = {name: {} for name in tasks}
    layers = 0
    for schedule, depth in settings.items():
        model = D3LM(
            pretrained=given.model,
            dtype=given.dtype,
            quantization=given.quantization,
            threads=given.threads,
            **depth,
        )
        layers = model.evaluated.model.num_layers
        for name in tasks:
            found[name][schedule] = run_task(model, name, given, manager)
            for row in rows(name, {schedule: found[name][schedule]}, layers):
                print(" | ".join(row), file=sys.stderr, flush=True)
    return found, layers


def all_of_bbh(found: dict[str, dict[str, Result]]) -> dict[str, Result]:
    """The results of all tasks but GSM8K together, by schedule."""
    total: dict[str, Result] = {}
    for name, results in found.items():
        for schedule, one in results.items():
            if name != GSM8K:
                total.setdefault(schedule, Result()).add(one)
    return total


def main() -> int:
    given = arguments()
    with TemporaryDirectory() as directory:
        found, layers = run_all(given, Path(directory))
    several = len(found.keys() - {GSM8K})
    if several > 1:
        found[f"BBH: {several} tasks"] = all_of_bbh(found)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name, results in found.items():
        for row in rows(name, results, layers):
            print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except D3Error as error:
        sys.exit(f"error: {error.message}\n{error.hint}")
