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
from unittest.mock import patch

import torch

from d3cli.base.errors import ModelError
from d3cli.base.launch import launched
from d3cli.calibrate.influence import measure_influence
from d3cli.cli import ranks
from d3cli.decode.draft.drafter import Drafter
from d3cli.decode.sampling import SamplingParams
from d3cli.decode.session import Engine
from d3cli.depth.prompt_order import PromptSchedule, Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.scoring.documents import Document
from d3cli.scoring.one_pass import Scorer, score
from tests.families import random_ids, sublayers, whole_layers

TOKENS = 6  # of a reply; for each, the ranks wait for each other twice a layer
STEEP = 0.86  # as many layers are dropped as with 12 tokens at 0.93
TOLERANCE = 1e-5
PROMPT = random_ids(17)


def replies(model: LoadedModel, schedule: Schedule, drafter: Drafter | None = None) -> list[int]:
    """Two turns of a conversation. The second one repairs the KV cache before it begins."""
    engine, ids = Engine(model), list(PROMPT)
    for turn in range(2):
        ids += random_ids(5, seed=turn)
        reply = engine.stream_ids(
            ids,
            schedule=schedule,
            sampling=SamplingParams(),
            max_tokens=TOKENS,
            drafter=drafter,
        )
        ids += [chunk.token_id for chunk in reply if chunk.token_id is not None]
    return ids


def differences(split: LoadedModel, alone: LoadedModel, turn: int) -> Iterator[str]:
    """Says what a model split over ranks computes otherwise than in one process.

    Args:
        turn: the number of the model. Models take turns with the four kinds of replies.
    """
    full = DepthSchedule.full(alone.num_layers)
    # By prompt, whole layers are dropped, and both ranks must find the same order of them.
    by_prompt = PromptSchedule(alone.num_layers, STEEP, 2, 1, 2, ("1", "2", "3", "4", "5"))
    schedules = (full, sublayers(alone, STEEP), by_prompt)
    if kind := turn % 4:
        ids = [replies(model, schedules[kind - 1]) for model in (split, alone)]
    else:  # lossless
        drafted = replies(split, whole_layers(STEEP), Drafter.for_model(split))
        ids = [drafted, replies(alone, full)]
    if ids[0] != ids[1]:
        yield f"tokens of kind {kind}: {ids}"
    documents = [
        Document(random_ids(9, seed=4), random_ids(12, seed=5)),
        Document(PROMPT, random_ids(7, seed=6)),
    ]
    for schedule in (full, whole_layers(), sublayers(alone)):
        ours, theirs = (
            torch.cat([one.log_probs for one in score(model, documents, schedule)])
            for model in (split, alone)
        )
        if (ours - theirs).abs().max() > TOLERANCE:
            yield f"scores under {schedule.skip_order}"
    states = []
    for model in (split, alone):
        scorer = Scorer(model, documents)
        scorer.remember(full, [0])
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
    together = {"leader": ranks.leader(), "ranks": launch}
    found: dict[str, list[str]] = {}
    # A model that one rank cannot load leaves all of them ready for the next.
    with patch("d3cli.model.load.load_weights", side_effect=ModelError("it is damaged")):
        try:
            load_model(str(min(models.iterdir())), dtype="float32", device="cpu", **together)
        except ModelError as error:
            found["damaged"] = [] if error.message == "it is damaged" else [error.message]
    for turn, path in enumerate(sorted(models.iterdir())):
        try:
            split = load_model(str(path), dtype="float32", device="cpu", **together)
            alone = load_model(str(path), dtype="float32", device="cpu")
            found[path.name] = list(differences(split, alone, turn))
        except Exception:
            found[path.name] = [traceback.format_exc()]
        results.write_text(json.dumps(found))
    os._exit(ranks.finish(0))


if __name__ == "__main__":
    main()
