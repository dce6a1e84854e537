"""Train the built-in demo model from scratch on the CPU, and export it.

A Llama of 16 narrow layers learns the dialogues of `demo_text`. Its middle layers are trained to
be skipped, after LayerSkip (Elhoushi et al., arXiv 2404.16710), in the way that D³ skips them: in
most batches some flex layers run only on a prefix of the positions, so that later positions see
fewer layers and nested sets. `--control` trains the same model on the same batches without that.

A run that stopped continues from its last checkpoint: weights, optimizer, position in the data
and random state are all in it.

    python scripts/train_demo_model.py --out build/demo
    python scripts/train_demo_model.py --out build/control --control
    python scripts/train_demo_model.py --out build/demo --export d3cli/builtin
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import demo_forward
import torch
import torch.distributed as dist
from demo_batches import (
    CONTEXT,
    Batch,
    build_tokenizer,
    in_short_replies,
    load_tokenizer,
    name_weights,
)
from demo_forward import (
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    Rotary,
    attention_bias,
    draw_prefixes,
    loss_of,
)
from demo_optimizer import Optimizer
from demo_recipe import Progress, Recipe, batches
from torch import nn
from torch.multiprocessing.spawn import spawn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHECKPOINT = "checkpoint.pt"
NAME_WEIGHT = 3.0  # of names in the loss after the first part: who is who is learned last
SHORT_REPLY_WEIGHT = 4.0  # of each token of a short reply, in the last part
LOG_EVERY, SAVE_EVERY = 50, 150  # steps


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_((2 * LAYERS) ** -0.5)
            layer.mlp.down_proj.weight.mul_((2 * LAYERS) ** -0.5)
    return model


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Write beside the old checkpoint and replace it, so that a crash leaves one of the two."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class Gradients:
    """All gradients in one flat tensor, so that the workers add theirs up in one call."""

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        self.flat = torch.zeros(sum(p.numel() for p in parameters))
        parts = torch.split(self.flat, [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def add_up(self, max_norm: float = 1.0) -> None:
        """Sum over the workers, then clip by the norm."""
        dist.all_reduce(self.flat)
        self.flat.mul_((max_norm / (self.flat.norm() + 1e-6)).clamp(max=1.0))


def train(
    worker: int, workers: int, out: Path, recipe: Recipe, max_steps: int | None, compiled: bool
) -> None:
    """Train to the recipe's token budget, from the checkpoint in `out` if one is there.

    Each worker is a process with one thread that takes its share of every batch's rows: for such
    small matrices that is faster than two threads in one process. Worker 0 writes the files.
    """
    torch.set_num_threads(1)
    if compiled:
        demo_forward.run_layer = torch.compile(demo_forward.run_layer, dynamic=True)
    rendezvous = f"file://{(out / 'rendezvous').resolve()}"
    dist.init_process_group("gloo", rendezvous, rank=worker, world_size=workers)
    tokenizer = load_tokenizer(out / "tokenizer")
    model = new_model(tokenizer, recipe.seed)
    gradients = Gradients(model)
    dtype = getattr(torch, recipe.dtype)
    optimizer = Optimizer(model, recipe.weight_decay, dtype, worker, workers)
    rng = random.Random(f"drop:{recipe.seed}")
    at = Progress()
    if (out / CHECKPOINT).exists():
        state = torch.load(out / CHECKPOINT, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise SystemExit(f"{out} holds a run with another recipe: {state['recipe']}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        version, internal, gauss = state["rng"]
        rng.setstate((version, tuple(internal), gauss))
        at = Progress(**state["at"])
    full_depth_share = 1.0 if recipe.control else recipe.full_depth_share
    rotary = Rotary(HIDDEN // HEADS, dtype)
    weights = name_weights(tokenizer, NAME_WEIGHT)
    begun, cpu_before = time.monotonic() - at.seconds, at.cpu_seconds
    totals = torch.zeros(2, dtype=torch.float64)  # loss and steps since the last log line

    for batch in batches(tokenizer, recipe, at):
        if max_steps and at.step >= max_steps:
            break
        prefixes = draw_prefixes(rng, full_depth_share, batch.ids.shape[1])
        share = Batch(
            batch.block, batch.number, batch.ids[worker::workers], batch.labels[worker::workers]
        )
        gradients.flat.zero_()
        if len(share.ids):
            # In the longest windows dialogues see each other, so that all positions are trained.
            apart = share.ids.shape[1] < CONTEXT
            bias = attention_bias(share.ids, tokenizer.bos_token_id, apart, dtype)
            scored = int((batch.labels >= 0).sum())
            losses, labels = loss_of(model, share, prefixes, rotary, bias)
            weighted = losses * weights[labels] if at.part else losses
            if at.part == 2:
                short = in_short_replies(share.labels)[share.labels >= 0]
                weighted = torch.where(short, losses * SHORT_REPLY_WEIGHT, weighted)
            torch.autograd.backward(weighted.sum() / scored)
            totals[0] += losses.detach().sum().item() / scored
        gradients.add_up()
        optimizer.step(recipe.rate(at.seen))
        totals[1] += 1
        at.block, at.number, at.step = batch.block, batch.number + 1, at.step + 1
        at.seen, at.seconds = at.seen + batch.ids.numel(), time.monotonic() - begun
        if at.step % LOG_EVERY == 0:
            at.cpu_seconds = cpu_before + add_up(time.process_time())
            loss_sum = add_up(totals[0].item())
            if worker == 0:
                log_line(out, at, loss_sum / totals[1].item(), recipe)
            totals.zero_()
        if worker == 0 and at.step % SAVE_EVERY == 0:
            save(out, recipe, model, optimizer, rng, at)
    at.cpu_seconds = cpu_before + add_up(time.process_time())
    if worker == 0:
        save(out, recipe, model, optimizer, rng, at)
        minutes, cpu_minutes = at.seconds / 60, at.cpu_seconds / 60
        print(f"{at.seen:,} tokens in {minutes:.1f} min, {cpu_minutes:.1f} min of CPU time")
    dist.destroy_process_group()


def add_up(value: float) -> float:
    """The sum of a number over the workers."""
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item()


def log_line(out: Path, at: Progress, loss: float, recipe: Recipe) -> None:
    row = asdict(at) | {"loss": loss, "learning_rate": recipe.rate(at.seen)}
    row["tokens_per_second"] = at.seen / at.seconds
    with (out / "loss.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def save(
    out: Path,
    recipe: Recipe,
    model: LlamaForCausalLM,
    optimizer: Optimizer,
    rng: random.Random,
    at: Progress,
) -> None:
    """Everything that a run needs to go on: weights, optimizer, random state, data position."""
    state: dict[str, object] = {
        "recipe": asdict(recipe),
        "model": model.state_dict(),
        "at": asdict(at),
    }
    state |= {"optimizer": optimizer.state_dict(), "rng": rng.getstate()}
    save_checkpoint(out / CHECKPOINT, state)


def export(out: Path, target: Path) -> None:
    """Write the model directory from the checkpoint; each file replaces the old one at once."""
    tokenizer = load_tokenizer(out / "tokenizer")
    state = torch.load(out / CHECKPOINT, weights_only=True)
    model = new_model(tokenizer, state["recipe"]["seed"])
    model.load_state_dict(state["model"])
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        model.bfloat16().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for file in Path(partial).iterdir():
            shutil.copymode(__file__, file)
            file.replace(target / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the built-in demo model, or export a checkpoint of it. "
        "Continues by itself if --out holds a checkpoint of the same recipe."
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, tokenizer and log")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs=3,
        default=(17_000_000, 11_000_000, 5_000_000),
        metavar="N",
        help="tokens of each part",
    )
    parser.add_argument("--max-steps", type=int, help="stop earlier (the schedule stays)")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--control", action="store_true", help="train without dropping layers")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the products; float32 is faster on a processor without bfloat16 instructions",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="fuse a layer's operations with torch.compile, which needs a C++ compiler; "
        "with --control, since dropped layers have a new length at every step",
    )
    parser.add_argument("--no-resume", action="store_true", help="start over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--export", type=Path, metavar="DIR", help="only write DIR from --out")
    args = parser.parse_args()
    if args.export:
        return export(args.out, args.export)
    if args.no_resume:
        shutil.rmtree(args.out, ignore_errors=True)
    recipe = Recipe(
        seed=args.seed,
        tokens=tuple(args.tokens),
        batch_tokens=args.batch_tokens,
        learning_rate=args.learning_rate,
        control=args.control,
        dtype=args.dtype,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rendezvous").unlink(missing_ok=True)
    (args.out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    if not (args.out / "tokenizer" / "tokenizer.json").exists():
        build_tokenizer(recipe.seed).save_pretrained(args.out / "tokenizer")
    # Freed memory is kept: giving it back at each operation took a quarter of the time.
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        os.environ.setdefault(name, str(1 << 33))
    arguments = (args.workers, args.out, recipe, args.max_steps, args.compile)
    spawn(train, arguments, nprocs=args.workers)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
