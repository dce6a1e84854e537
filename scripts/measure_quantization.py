"""Measures what int8, int4 and nested weights cost in quality, on fixed texts.

    python scripts/measure_quantization.py                         # the built-in model
    python scripts/measure_quantization.py DIRECTORY --mixed
    python scripts/measure_quantization.py FILE.gguf --only own    # its 4 bits, as int4 keeps them
    python scripts/measure_quantization.py DIRECTORY --mixed --only importance

Each arm holds the layers' linears in float32 with the values that the codes stand for. The LM head
stays as it is. Prints the change of teacher-forced perplexity against the plain weights on the
same tokens, the KL divergence from them, the share of tokens with the same top choice, and the
relative squared error of the weights. The texts are English prose, code and dialogue
(``scripts/texts``). The built-in model, which knows few words, reads its own held-out replies.

The weights of a model that was once stored in 4 bits lie on a grid of 16 values in each group. That
flatters groups of the same size. `--mixed` permutes the inputs of every linear before grouping, so
that no group is one of the grid's.

d3 rounds by least squares (`d3cli/kernels/int4_rounding.py`) by the importance of the inputs. The
other ways are here to compare.
The last column is the processor time for a million weights, which is comparable within a run only.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from d3cli.base.settings import BUILTIN
from d3cli.calibrate.texts import builtin_samples, encode_samples
from d3cli.kernels.int4_linear import FourBitLinear
from d3cli.kernels.int4_rounding import ROUNDS, round_to_groups
from d3cli.kernels.int8_linear import EightBitLinear
from d3cli.kernels.joint_linear import JointLinear
from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from d3cli.model.typical_text import typical_ids

TEXTS = Path(__file__).parent / "texts"
PIECE, PROMPT = 256, 8  # tokens of one text, and the first of them that are not scored
GROUPS = (32, 64, 128)

# A weight ``[out, in]`` and the importance of its inputs, to the weight that its codes stand for.
Rounding = Callable[[Tensor, Tensor], Tensor]


def by_least_squares(rounds: int, group: int, weight: Tensor) -> Tensor:
    """All inputs count alike; without rounds, the values of a group span its range."""
    return round_to_groups(weight, group, torch.bfloat16, rounds).dequantized()


def by_clipping(group: int, weight: Tensor) -> Tensor:
    """Least squares from 16 starts: ranges narrowed by up to two fifths; the best start wins."""
    groups = weight.float().view(-1, group)
    low, high = groups.aminmax(dim=1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    found = torch.empty_like(groups)
    for kept in torch.linspace(1, 0.6, 16).tolist():
        scale = kept * (high - low) / 15
        scale, zero = scale.clamp(min=1e-12), (low + high) / 2 - 7.5 * scale
        for _ in range(ROUNDS):
            codes = ((groups - zero) / scale).round().clamp(0, 15)
            centered = codes - codes.mean(1, keepdim=True)
            slope = (centered * groups).sum(1, keepdim=True) / centered.square().sum(
                1, keepdim=True
            )
            scale = torch.where(slope > 0, slope, scale)
            zero = groups.mean(1, keepdim=True) - scale * codes.mean(1, keepdim=True)
        scale, zero = scale.bfloat16().float(), zero.bfloat16().float()
        values = ((groups - zero) / scale).round().clamp(0, 15) * scale + zero
        error = (values - groups).square().sum(1, keepdim=True)
        found = torch.where(error < best, values, found)
        best = torch.minimum(error, best)
    return found.view_as(weight)


def by_half_quadratic(group: int, weight: Tensor) -> Tensor:
    """HQQ (Badri and Shaji, 2023): fits the zero so that few weights have large errors.

    The scale spans the range. 20 rounds; p = 0.7, beta = 10, growing by 1%, as published.
    """
    groups = weight.float().view(-1, group)
    low, high = groups.aminmax(dim=1, keepdim=True)
    inverse = (15 / (high - low)).clamp(max=2e4)
    zero, beta = -low * inverse, 10.0
    for _ in range(20):
        codes = (groups * inverse + zero).round_().clamp_(0, 15)
        error = groups - (codes - zero) / inverse
        size = error.abs().clamp_(min=1e-12)
        outliers = error.sign() * (size - size.pow(-0.3) / beta).clamp_(min=0)
        zero = (codes - (groups - outliers) * inverse).mean(1, keepdim=True)
        beta *= 1.01
    scale, zero = (1 / inverse).bfloat16().float(), (-zero / inverse).bfloat16().float()
    values = ((groups - zero) / scale).round_().clamp_(0, 15) * scale + zero
    return values.view_as(weight)


def by_importance(group: int, weight: Tensor, importance: Tensor) -> Tensor:
    """The way of d3: least squares in which inputs count by their importance."""
    return round_to_groups(weight, group, torch.bfloat16, importance=importance).dequantized()


def in_planes(high: int, low: int, weight: Tensor, importance: Tensor | None = None) -> Tensor:
    """Nested weights, with so many in a group of each plane."""
    found = weight
    total = torch.zeros_like(weight)
    for group in (high, low):
        plane = round_to_groups(found, group, torch.bfloat16, importance=importance).dequantized()
        total, found = total + plane, found - plane
    return total


def evenly(way: Callable[[Tensor], Tensor]) -> Rounding:
    """A way for which all inputs are alike."""
    return lambda weight, _: way(weight)


def arms() -> dict[str, tuple[int, Rounding]]:
    """Each way to round a weight, with the number that must divide its inputs."""

    def by_rows(weight: Tensor) -> Tensor:
        return EightBitLinear(weight, None).dequantized()

    found: dict[str, tuple[int, Rounding]] = {"int8, a scale per row": (32, evenly(by_rows))}
    for group in GROUPS:
        ways: dict[str, Rounding] = {
            "values that span the range": evenly(partial(by_least_squares, 0, group)),
            "least squares, 2 rounds": evenly(partial(by_least_squares, 2, group)),
            "least squares, 4 rounds": evenly(partial(by_least_squares, 4, group)),
            "least squares, 4 rounds, by importance": partial(by_importance, group),
            "least squares from 16 starts": evenly(partial(by_clipping, group)),
            "half-quadratic": evenly(partial(by_half_quadratic, group)),
        }
        found |= {f"int4, groups of {group}, {name}": (group, way) for name, way in ways.items()}
    for high, low in product(GROUPS, GROUPS):
        name, planes = f"nested, groups of {high} and {low}", partial(in_planes, high, low)
        found[name] = (max(high, low), evenly(planes))
        found[f"{name}, by importance"] = (max(high, low), planes)
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


def mixed(rounding: Rounding, weight: Tensor, importance: Tensor) -> Tensor:
    """Rounds a weight whose inputs are permuted, and puts them back."""
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
    return rounding(weight[:, order], importance[order])[:, order.argsort()]


def importances(model: LoadedModel, linears: list[torch.nn.Linear]) -> list[Tensor]:
    """The mean squares of each linear's inputs in the text that loading reads, ``[in]``."""
    found: dict[torch.nn.Module, Tensor] = {}

    def keep(linear: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        found[linear] = inputs[0].flatten(0, -2).square().mean(0)

    hooks = [linear.register_forward_pre_hook(keep) for linear in linears]
    model.hidden_states(torch.tensor([typical_ids(model.text.tokenizer, model.causal_lm.config)]))
    for hook in hooks:
        hook.remove()
    return [found[linear] for linear in linears]


def bits_of_file(path: str) -> Rounding:
    """The way of a GGUF file: the 4 bits that `load_model` takes from it, linear by linear."""
    model = load_model(path, dtype="bfloat16", device="cpu", quantization="int4")
    weights: list[Tensor] = []
    joined = set()
    for module in model.gate.layers.modules():
        if isinstance(module, JointLinear):
            weights += module.product.dequantized().split_with_sizes(module.sizes)
            joined.add(module.product)
        elif isinstance(module, FourBitLinear) and module not in joined:
            weights.append(module.dequantized())
    in_order = iter(weights)
    return lambda *_: next(in_order)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default=BUILTIN)
    parser.add_argument("--mixed", action="store_true", help="permute the inputs of every linear")
    parser.add_argument("--only", default="", help="only ways with this text in their names")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    model = load_model(asked.model, dtype="float32", device="cpu", threads=asked.threads)
    ways = arms()
    if asked.model.endswith(".gguf") and not asked.mixed:
        ways = {"int4, the file's own": (32, bits_of_file(asked.model)), **ways}
    texts = pieces(model)
    linears = [m for m in model.gate.layers.modules() if isinstance(m, torch.nn.Linear)]
    plain = [linear.weight.detach().clone() for linear in linears]
    counted = importances(model, linears)
    expected = log_probs(model, texts)
    targets = [ids[PROMPT + 1 :, None] for ids in texts]
    tokens = sum(map(len, targets))
    print(f"{model.name}, {tokens} tokens{', inputs mixed' if asked.mixed else ''}")
    print("| weights | perplexity | KL, nats | same top choice | squared error | linears | ms |")
    print("|---|---|---|---|---|---|---|")
    for name, (multiple, rounding) in ways.items():
        if asked.only not in name:
            continue
        error = total = taken = 0.0
        count = weights = 0
        for linear, weight, importance in zip(linears, plain, counted, strict=True):
            linear.weight.copy_(weight)
            if weight.shape[1] % multiple == 0:
                began = time.process_time()
                way = partial(mixed, rounding) if asked.mixed else rounding
                rounded = way(weight, importance)
                taken += time.process_time() - began
                weights += weight.numel()
                error += float((rounded - weight).square().sum())
                total += float(weight.square().sum())
                linear.weight.copy_(rounded)
                count += 1
        loss = divergence = same = 0.0
        for ours, full, target in zip(log_probs(model, texts), expected, targets, strict=True):
            loss += float((full - ours).gather(1, target).sum())
            divergence += float(kl_div(ours, full, reduction="sum", log_target=True))
            same += int((ours.argmax(-1) == full.argmax(-1)).sum())
        change = torch.tensor(loss / tokens).exp() - 1
        print(
            f"| {name} | {float(change):+.1%} | {divergence / tokens:.4f} | {same / tokens:.1%} "
            f"| {error / total:.6f} | {count} of {len(linears)} "
            f"| {1e9 * taken / max(1, weights):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
