"""Measures what an 8-bit LM head costs in quality and saves in time.

    python scripts/bench_head.py                                   # quality: the built-in model
    python scripts/bench_head.py --model build/llama-3.2-1b        # time, at a real shape

Both heads get the same hidden states, of held-out replies at full depth, so only the head differs.
Random weights say nothing about quality; use them for the time only.
"""

import argparse
import time
from statistics import median

import torch
from torch.nn.functional import kl_div

from d3cli.base.settings import BUILTIN
from d3cli.calibrate.texts import builtin_samples, encode_samples
from d3cli.kernels.int8_linear import quantize_head
from d3cli.model.load import load_model
from d3cli.scoring.intervals import measure_drop

CONFIDENCE = 0.95


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--quantization", choices=["bnb-4bit"])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=21)
    asked = parser.parse_args()
    model = load_model(
        asked.model,
        dtype="bfloat16",
        device="cpu",
        threads=asked.threads,
        quantization=asked.quantization,
        quantize_head="off",
    )
    plain = model.causal_lm.get_output_embeddings()
    # A packed weight is opaque; to_dense converts it back.
    weight = plain.weight.to_dense() if plain.weight.is_mkldnn else plain.weight
    quantize_head(model.causal_lm, lambda _: weight)
    small = model.causal_lm.get_output_embeddings()
    documents = encode_samples(model, builtin_samples(model))
    losses = []
    divergence, same, tokens = 0.0, 0, 0
    for document in documents[: asked.documents]:
        ids = torch.tensor([[*document.prompt_ids, *document.response_ids]])
        hidden = model.hidden_states(ids)[0, len(document.prompt_ids) - 1 : -1]
        logits = {}
        for name, head in (("plain", plain), ("small", small)):
            model.causal_lm.set_output_embeddings(head)
            # Token by token, as in decoding: many rows at once take another path.
            logits[name] = torch.stack([model.logits(row) for row in hidden])
        first, second = (logits[name].log_softmax(-1) for name in ("plain", "small"))
        targets = torch.tensor(document.response_ids)[:, None]
        losses.append((first - second).gather(1, targets)[:, 0].double().numpy())
        divergence += float(kl_div(second, first, reduction="sum", log_target=True))
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        tokens += len(hidden)
    drop = measure_drop(losses, CONFIDENCE)
    print(
        f"{model.name}: perplexity {drop.value:+.4%} ({drop.low:+.4%} to {drop.high:+.4%}), "
        f"KL {divergence / tokens:.2e} nats, same top choice {same / tokens:.3%}, {tokens} tokens"
    )
    rows = torch.randn(asked.rounds, hidden.shape[-1]).to(hidden.dtype)
    times: dict[str, list[float]] = {"plain": [], "small": []}
    for number, row in enumerate(rows):
        for name in sorted(times, reverse=bool(number % 2)):
            began = time.perf_counter()
            (plain if name == "plain" else small)(row)
            times[name].append(time.perf_counter() - began)
    print(
        f"one token: {1000 * median(times['plain']):.2f} ms as it is, "
        f"{1000 * median(times['small']):.2f} ms in 8 bits"
    )


if __name__ == "__main__":
    main()
