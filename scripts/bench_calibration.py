"""Shows what d3 calibrate finds on a model, how long it takes, and whether its promise holds.

    python scripts/bench_calibration.py                       # targets by seeds
    python scripts/bench_calibration.py --promise 20          # does it hold on further text?
    python scripts/bench_calibration.py --model FILE.gguf --targets 0.01 0.03 0.07 --seeds 1
    python scripts/bench_calibration.py --quantization nested # in this form alone

With --promise, each round uses another seed to set aside a third of the held-out documents,
calibrates on the rest as always, and measures the chosen drop on the third set aside. Prints rows
of a Markdown table. As the command does, it tries the model as stored and in other forms, and
compares with full depth as stored.
"""

import argparse
import math
import random

import numpy as np

from d3cli.base.settings import BUILTIN
from d3cli.calibrate.calibrator import Calibrator
from d3cli.calibrate.evaluator import finite_losses
from d3cli.calibrate.forms import ModelForms, load_forms
from d3cli.calibrate.result import Measured, Outcome
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.space import Candidate
from d3cli.calibrate.texts import builtin_samples, encode_samples
from d3cli.calibrate.unit_order import kind_in_words
from d3cli.depth.prompt_order import Schedule
from d3cli.kernels.quantization import Quantization
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.snapshot import Snapshot, compare_with, take_snapshots

COLUMNS = "chosen | unseen half | KL, same top | bytes, net | speed, net | decay"


def calibrated(
    forms: ModelForms, texts: list[Document], settings: CalibrationSettings
) -> tuple[Outcome, Calibrator]:
    forms.take(forms.reference)
    calibrator = Calibrator(forms, texts, settings)
    for _ in calibrator:
        pass
    return calibrator.outcome, calibrator


def drop_on(
    forms: ModelForms,
    texts: list[Document],
    schedule: Schedule,
    quantization: Quantization | None = None,
) -> float:
    """The drop of a schedule on documents, against full depth of the reference form."""
    kept: dict[int, Snapshot] = {}
    for batch in take_snapshots(forms.take(forms.reference), texts):
        kept |= batch
    snapshots = [kept[row] for row in range(len(texts))]
    model = forms.take(quantization)
    losses = [
        finite_losses(found[0].losses)
        for compared in compare_with(model, texts, snapshots, [schedule])
        for found in compared.values()
    ]
    return math.expm1(float(np.concatenate(losses).mean()))


def in_words(candidate: Candidate) -> str:
    form = candidate.quantization or "as stored"
    if candidate.kind is None:
        return f"{form}, full depth"
    units = kind_in_words(candidate.kind, by_prompt=candidate.by_prompt)
    return f"{form}, {units}: {candidate.schedule.in_words()}"


def row(outcome: Outcome) -> str:
    if outcome.chosen is None:
        return "nothing |  |  |  |  | "
    verdict = outcome.verdict.words if outcome.verdict else outcome.no_verdict
    return f"{figures(outcome.chosen)} | {verdict}"


def figures(measured: Measured) -> str:
    candidate, drop = measured.candidate, measured.drop
    return (
        f"{in_words(candidate)} | {drop.value:+.2%} ({drop.low:+.2%} to {drop.high:+.2%}) | "
        f"{measured.kl:.4f}, {measured.same_top:.1%} | {candidate.byte_ratio:.2f} | "
        f"{candidate.speed:.2f}"
    )


def rivals(outcome: Outcome) -> list[str]:
    """The best without decay, at constant depth and decaying, a row each."""
    return [f"|  | best {sort} | {figures(one)} |  |  |" for sort, one in outcome.rivals.items()]


def forms_of(args: argparse.Namespace) -> ModelForms:
    def load(quantization: Quantization | None) -> LoadedModel:
        return load_model(
            args.model, dtype=args.dtype, threads=args.threads, quantization=quantization
        )

    if args.quantization == "auto":
        return load_forms(load)
    wanted = None if args.quantization == "none" else args.quantization
    return ModelForms(load(wanted))


def show_promise(forms: ModelForms, texts: list[Document], target: float, rounds: range) -> None:
    kept = 0
    print(f"| round | {COLUMNS} | third split |")
    for number in rounds:
        order = list(texts)
        random.Random(1000 + number).shuffle(order)
        aside, rest = order[: len(order) // 3], order[len(order) // 3 :]
        outcome, _ = calibrated(forms, rest, CalibrationSettings(target, seed=number))
        third = None
        if outcome.chosen is not None:
            chosen = outcome.chosen.candidate
            third = drop_on(forms, aside, chosen.schedule, chosen.quantization)
        kept += third is None or third <= target
        shown = "" if third is None else f"{third:+.2%}"
        print(f"| {number} | {row(outcome)} | {shown} |", flush=True)
    print(f"\n{kept} of {len(rounds)} within {target:.1%} on the third split")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="auto", help="auto, none, int8, nested, int4")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.01, 0.02, 0.05])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--promise", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--first", type=int, default=0, help="round, to go on where a run ended")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    forms = forms_of(args)
    texts = encode_samples(forms.model, builtin_samples(forms.model))
    if args.promise:
        show_promise(forms, texts, args.targets[0], range(args.first, args.promise))
        return
    print(f"| target | seed | {COLUMNS} | s |")
    for target in args.targets:
        for seed in range(args.seeds):
            outcome, calibrator = calibrated(forms, texts, CalibrationSettings(target, seed=seed))
            print(
                f"| {target:.0%} | {seed} | {row(outcome)} | {outcome.seconds:.0f} (about "
                f"{calibrator.plan.estimate:.0f}) |",
                *rivals(outcome),
                sep="\n",
                flush=True,
            )


if __name__ == "__main__":
    main()
