"""Compares lm-evaluation-harness' scores of a model at full depth: by d3, and by transformers.

    python scripts/check_harness.py TASKS MODEL [--hf MODEL_ARGS] [--alpha 0.9]

TASKS is a directory with tasks (YAML) of local files; docs/evals.md shows one. Both models run in
float32; the harness' softmax runs in float64, since its sums in float32 are less exact than that.
Exits with 1 if two log-likelihoods of a sample differ by more than 1e-4, or two replies differ.
With --alpha, also says how many answers that schedule changes.
"""

import argparse
import sys
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

import d3cli.evals.harness  # noqa: F401 - registers the model

TOLERANCE = 1e-4


def answers(tasks: str, model: str, args: dict[str, Any]) -> dict[tuple[str, int, int], Any]:
    """What a model answers to each request: by task, sample and number."""
    manager = TaskManager(include_path=tasks, include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=args,
        tasks=manager.all_tasks,
        task_manager=manager,
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )
    return {
        (task, sample["doc_id"], number): answer
        for task, samples in found["samples"].items()
        for sample in samples
        for number, answer in enumerate(value for [value] in sample["resps"])
    }


def difference(one: Any, other: Any) -> float:
    """Between two log-likelihoods; for texts, 0 or infinity."""
    if isinstance(one, str):
        return 0.0 if one == other else float("inf")
    if isinstance(one, tuple):
        return abs(one[0] - other[0]) if one[1] == other[1] else float("inf")
    return abs(one - other)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks")
    parser.add_argument("model")
    parser.add_argument("--hf", help="model arguments of transformers' model, if not the same name")
    parser.add_argument("--alpha", type=float)
    given = parser.parse_args()
    ours = {"pretrained": given.model, "dtype": "float32", "quantization": "none"}
    theirs = {"pretrained": given.model}
    if given.hf:
        theirs = dict(pair.split("=", 1) for pair in given.hf.split(","))
    full = answers(given.tasks, "d3", ours | {"alpha": "off"})
    hf = answers(given.tasks, "hf", theirs | {"dtype": "float32", "softmax_dtype": "float64"})
    assert full.keys() == hf.keys()
    worst = max(full, key=lambda key: difference(full[key], hf[key]))
    largest = difference(full[worst], hf[worst])
    print(f"{len(full)} answers; the largest difference is {largest:.2g}, at {worst}")
    if given.alpha is not None:
        decayed = answers(given.tasks, "d3", ours | {"alpha": given.alpha})
        changed = sum(difference(full[key], decayed[key]) > TOLERANCE for key in full)
        print(f"alpha {given.alpha}: {changed} of {len(full)} answers differ from full depth's")
    return int(largest > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
