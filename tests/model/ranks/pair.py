"""What two ranks compute together, beside what one process computes alone; run by torchrun.

    torchrun --standalone --nproc-per-node 2 -m tests.model.ranks.pair MODELS RESULTS

MODELS is a directory of models. RESULTS gets a JSON object: for each of them what differed.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from d3cli.base.launch import launched
from d3cli.calibrate.influence import measure_influence
from d3cli.cli import ranks
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import Scorer, score
from tests.families import random_ids, sublayers, whole_layers

TOKENS = 20
TOLERANCE = 1e-5


def tokens(model: LoadedModel, schedule: DepthSchedule, prompt: list[int]) -> list[int | None]:
    reply = Engine(model).stream_ids(
        prompt, schedule=schedule, sampling=SamplingParams(), max_tokens=TOKENS
    )
    return [chunk.token_id for chunk in reply]


def differences(split: LoadedModel, alone: LoadedModel) -> Iterator[str]:
    """Says what a model split over ranks computes otherwise than in one process."""
    prompt = random_ids(17)
    schedules = [DepthSchedule.full(alone.num_layers), whole_layers(), sublayers(alone)]
    for schedule in schedules:
        ids = [tokens(model, schedule, prompt) for model in (split, alone)]
        if ids[0] != ids[1]:
            yield f"tokens under {schedule.skip_order}: {ids}"
    replies = random_ids(12, seed=5), random_ids(7, seed=6)
    documents = [Document(random_ids(9, seed=4), replies[0]), Document(prompt, replies[1])]
    for schedule in schedules:
        ours, theirs = (
            torch.cat([one.log_probs for one in score(model, documents, schedule)])
            for model in (split, alone)
        )
        if (ours - theirs).abs().max() > TOLERANCE:
            yield f"scores under {schedule.skip_order}"
    states = []
    for model in (split, alone):
        scorer = Scorer(model, documents)
        scorer.remember(schedules[0], [0])
        states.append(scorer.states(whole_layers()))
    if not torch.allclose(*states, atol=1e-4):
        yield "scores after remembered layers"
    units = ["1", "2.attn", "2.mlp"]
    influence = [measure_influence(model, documents, units) for model in (split, alone)]
    if any(abs(influence[0][unit] - influence[1][unit]) > TOLERANCE for unit in units):
        yield f"influence: {influence}"


def main() -> None:
    launch = launched()
    assert launch is not None
    if launch.rank:
        ranks.follow(launch)
    torch.set_num_threads(1)
    models, results = map(Path, sys.argv[1:])
    found: dict[str, list[str]] = {}
    for path in sorted(models.iterdir()):
        try:
            split = load_model(
                str(path), dtype="float32", device="cpu", leader=ranks.leader(), ranks=launch
            )
            alone = load_model(str(path), dtype="float32", device="cpu")
            found[path.name] = list(differences(split, alone))
        except Exception:
            found[path.name] = [traceback.format_exc()]
        results.write_text(json.dumps(found))
    os._exit(ranks.finish(0))


if __name__ == "__main__":
    main()
