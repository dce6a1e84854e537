"""Compares D³ with rival policies on a model, without a calibration before it.

    python scripts/compare_policies.py FILE.gguf --units layer --documents 48 --response-tokens 64

`d3 calibrate --compare-policies` searches first, which takes long on a slow machine. Here the skip
order is by Block Influence on one half of the documents, and the policies are compared on the
other half, at fixed byte ratios.
"""

import argparse
import json
import time

from d3cli.calibrate.forms import ModelForms
from d3cli.calibrate.influence import measure_influence, order_by_influence
from d3cli.calibrate.order import units_of
from d3cli.calibrate.policies import PolicyComparison
from d3cli.calibrate.result import Outcome
from d3cli.calibrate.settings import CalibrationSettings
from d3cli.calibrate.texts import builtin_samples, choose, encode_samples, split
from d3cli.cli.calibrate.policies import policies_json, write_policies
from d3cli.cli.output import Output
from d3cli.model.load import load_model
from d3cli.scoring.documents import Document

# Documents of the search half that decide the order.
RANKING = 8


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization")
    parser.add_argument("--units", choices=("layer", "sublayer", "plane"), default="layer")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--response-tokens", type=int, default=64, help="longer ones are cut")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    asked, began = parse(), time.monotonic()
    model = load_model(asked.model, dtype=asked.dtype, quantization=asked.quantization)
    found = choose(encode_samples(model, builtin_samples(model)), asked.documents, seed=0)
    cut = [
        Document(one.prompt_ids, one.response_ids[: asked.response_tokens])
        for one in found
        if len(one.response_ids) > 1
    ]
    search, unseen = split(cut, 0)
    influence = measure_influence(model, search[:RANKING], units_of(model, asked.units))
    outcome = Outcome(
        orders={asked.units: tuple(order_by_influence(model, influence))}, influence=influence
    )
    settings = CalibrationSettings(0.01, reply_tokens=asked.response_tokens)
    comparison = PolicyComparison(
        ModelForms(model), settings, outcome, unseen, began + asked.seconds
    )
    for _ in comparison:
        pass
    output = Output()
    if asked.json:
        output.json(policies_json(comparison.found))
    else:
        write_policies(output, comparison.found)
        print("order:", *outcome.orders[asked.units])
    print(json.dumps({"seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
