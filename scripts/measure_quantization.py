"""Measures what int8 and int4 weights cost in quality, on fixed texts.

    python scripts/measure_quantization.py                         # the built-in model
    python scripts/measure_quantization.py DIRECTORY --mixed

Each arm holds the layers' linears in float32 with the values that the codes stand for. The LM head
stays as it is. Prints the change of teacher-forced perplexity against the plain weights on the
same tokens, the KL divergence from them, the share of tokens with the same top choice, and the
relative squared error of the weights. The texts are English prose, code and dialogue
(``scripts/texts``). The built-in model, which knows few words, reads its own held-out replies.

The weights of a model that was once stored in 4 bits lie on a grid of 16 values in each group. That
flatters groups of the same size. `--mixed` permutes the inputs of every linear before grouping, so
that no group is one of the grid's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from d3cli.base.settings import BUILTIN
from d3cli.calibrate.texts import builtin_samples, encode_samples
from d3cli.kernels.int4_rounding import round_to_groups
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel

TEXTS = Path(__file__).parent / "texts"
PIECE, PROMPT = 256, 8  # tokens of one text, and the first of them that are not scored
GROUPS = (32, 64, 128)

Rounding = Callable[[Tensor], Tensor]


def arms() -> dict[str, tuple[int, Rounding]]:
    """Each way to round a weight, with the number that must divide its inputs."""
    found: dict[str, tuple[int, Rounding]] = {
        "int8, a scale per row": (32, lambda weight: EightBitLinear(weight, None).dequantized())
    }
    for group in GROUPS:
        for rounds, name in ((0, "range"), (4, "least squares")):

            def rounding(weight: Tensor, group: int = group, rounds: int = rounds) -> Tensor:
                return round_to_groups(weight, group, torch.bfloat16, rounds).dequantized()

            found[f"int4, groups of {group}, {name}"] = (group, rounding)
    return found


def pieces(model: LoadedModel) -> list[Tensor]:
    """Token ids to score."""
    if model.origin.builtin:
        documents = encode_samples(model, builtin_samples(model))[:100]
        return [torch.tensor([*each.prompt_ids, *each.response_ids]) for each in documents]
    found = []
    for path in sorted(TEXTS.glob("*.txt")):
        ids = torch.tensor(model.text.tokenizer(path.read_text()).input_ids)
        found += [part for part in ids.split(PIECE) if len(part) > 2 * PROMPT]
    return found


def log_probs(model: LoadedModel, texts: list[Tensor]) -> list[Tensor]:
    """For each text, the log-probabilities at each scored position, ``[T, V]``."""
    return [
        model.logits(model.hidden_states(ids[None, :-1])[0, PROMPT:]).log_softmax(-1)
        for ids in texts
    ]


def mixed(rounding: Rounding, weight: Tensor) -> Tensor:
    """Rounds a weight whose inputs are permuted, and puts them back."""
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
    return rounding(weight[:, order])[:, order.argsort()]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default=BUILTIN)
    parser.add_argument("--mixed", action="store_true", help="permute the inputs of every linear")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    model = load_model(asked.model, dtype="float32", device="cpu", threads=asked.threads)
    texts = pieces(model)
    linears = [m for m in model.gate.layers.modules() if isinstance(m, torch.nn.Linear)]
    plain = [linear.weight.detach().clone() for linear in linears]
    expected = log_probs(model, texts)
    targets = [ids[PROMPT + 1 :, None] for ids in texts]
    tokens = sum(map(len, targets))
    print(f"{model.name}, {tokens} tokens{', inputs mixed' if asked.mixed else ''}")
    print("| weights | perplexity | KL, nats | same top choice | squared error | linears |")
    print("|---|---|---|---|---|---|")
    for name, (multiple, rounding) in arms().items():
        loss = divergence = same = error = total = 0.0
        count = 0
        for linear, weight in zip(linears, plain, strict=True):
            linear.weight.copy_(weight)
            if weight.shape[1] % multiple == 0:
                rounded = mixed(rounding, weight) if asked.mixed else rounding(weight)
                error += float((rounded - weight).square().sum())
                total += float(weight.square().sum())
                linear.weight.copy_(rounded)
                count += 1
        for ours, full, target in zip(log_probs(model, texts), expected, targets, strict=True):
            loss += float((full - ours).gather(1, target).sum())
            divergence += float(kl_div(ours, full, reduction="sum", log_target=True))
            same += int((ours.argmax(-1) == full.argmax(-1)).sum())
        change = torch.tensor(loss / tokens).exp() - 1
        print(
            f"| {name} | {float(change):+.1%} | {divergence / tokens:.4f} | {same / tokens:.1%} "
            f"| {error / total:.5f} | {count} of {len(linears)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
