"""Shows what d3 calibrate finds on a model, how long it takes, and whether its promise holds.

    python scripts/bench_calibration.py                # targets by seeds
    python scripts/bench_calibration.py --promise 20   # does it hold on further text?

With --promise, each round uses another seed to set aside a third of the held-out documents,
calibrates on the rest as always, and measures the chosen schedule's drop on the third set aside.
Prints rows of a Markdown table.
"""

import argparse
import math
import random

import numpy as np

from d3cli.base.settings import BUILTIN
from d3cli.calibrate.calibrator import Calibrator
from d3cli.calibrate.result import CalibrationSettings, Outcome
from d3cli.calibrate.texts import builtin_samples, encode_samples
from d3cli.calibrate.unit_order import kind_in_words
from d3cli.depth.prompt_order import Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.intervals import Losses
from d3cli.scoring.one_pass import score


def calibrated(
    model: LoadedModel, texts: list[Document], settings: CalibrationSettings
) -> tuple[Outcome, Calibrator]:
    calibrator = Calibrator(model, texts, settings)
    for _ in calibrator:
        pass
    return calibrator.outcome, calibrator


def drop_on(model: LoadedModel, texts: list[Document], schedule: Schedule) -> float:
    losses: Losses = []
    for text in texts:
        full, ours = (
            score(model, [text], each)[0].log_probs.numpy()
            for each in (DepthSchedule.full(model.num_layers), schedule)
        )
        losses.append(full - ours)
    return math.expm1(float(np.concatenate(losses).mean()))


def words(outcome: Outcome) -> str:
    if outcome.chosen is None:
        return "nothing |  |  |  | "
    candidate, drop = outcome.chosen.candidate, outcome.chosen.drop
    schedule = candidate.schedule
    units = kind_in_words(candidate.kind, by_prompt=candidate.by_prompt)
    return (
        f"{units}, alpha {schedule.alpha:.4f} from {schedule.start}, floor "
        f"{schedule.floor:.2f} | {drop.value:+.2%} ({drop.low:+.2%} to {drop.high:+.2%}) | "
        f"{outcome.chosen.kl:.4f}, {outcome.chosen.same_top:.1%} | {candidate.byte_ratio:.2f} | "
        f"{outcome.verdict.words if outcome.verdict else ''}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.01, 0.02, 0.05])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--promise", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    model = load_model(args.model, dtype=args.dtype, threads=args.threads)
    texts = encode_samples(model, builtin_samples(model))
    if args.promise:
        target, kept = args.targets[0], 0
        print("| round | chosen | unseen half | KL, same top | bytes, net | | third split |")
        for number in range(args.promise):
            order = list(texts)
            random.Random(1000 + number).shuffle(order)
            aside, rest = order[: len(order) // 3], order[len(order) // 3 :]
            outcome, _ = calibrated(model, rest, CalibrationSettings(target, seed=number))
            third = None
            if outcome.chosen is not None:
                third = drop_on(model, aside, outcome.chosen.candidate.schedule)
            kept += third is None or third <= target
            shown = "" if third is None else f"{third:+.2%}"
            print(f"| {number} | {words(outcome)} | {shown} |", flush=True)
        print(f"\n{kept} of {args.promise} within {target:.1%} on the third split")
        return
    print("| target | seed | chosen | unseen half | KL, same top | bytes, net | decay | s |")
    for target in args.targets:
        for seed in range(args.seeds):
            outcome, calibrator = calibrated(model, texts, CalibrationSettings(target, seed=seed))
            print(
                f"| {target:.0%} | {seed} | {words(outcome)} | {outcome.seconds:.0f} (about "
                f"{calibrator.plan.estimate:.0f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
