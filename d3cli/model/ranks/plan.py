"""Which models transformers can split over ranks, and over how many."""

from math import gcd
from typing import Any

from d3cli.base.errors import D3Error, ModelError, Setting, UsageError
from d3cli.base.launch import Launch
from d3cli.depth.families import UNLISTED, Family
from d3cli.kernels.plan import Form

ALONE = "run it without torchrun"
# Projections whose outputs are keys, if they are split by heads.
KEYS = ("k_proj", "query_key_value")


def heads_are_split(config: Any) -> bool:
    """Whether each rank holds the keys and values of some heads, and not of all."""
    plan: dict[str, str] = config.base_model_tp_plan or {}
    return any(name.endswith(KEYS) and style == "colwise" for name, style in plan.items())


def check_ranks(name: str, config: Any, family: Family, form: Form, stored: Any) -> None:
    """Refuses a model that cannot be split over these ranks.

    Args:
        config: the parsed config.
        stored: how the files say that their weights are quantized; None if they are not.

    Raises:
        ModelError: there is no plan for models of its type.
        UsageError: the ranks do not divide its heads, or the weights are to be quantized.
    """
    kind = config.model_type
    if family is UNLISTED or not getattr(config, "base_model_tp_plan", None):
        raise ModelError(
            f'models of the type "{kind}" cannot be split over ranks: transformers has no plan '
            "for them that was tried",
            ALONE,
        )
    if kind == "cohere" and getattr(config, "use_qk_norm", False):
        raise ModelError(
            f"{name} cannot be split over ranks: transformers' plan does not split its norms of "
            "queries and keys, one for each head",
            ALONE,
        )
    if form.quantization is not None or form.quantize_head == "auto":
        raise UsageError(
            (Setting("quantization"), " does not work with several ranks"),
            ("leave it out, or ", ALONE),
        )
    if stored is not None:
        raise ModelError(
            f"{name} cannot be split over ranks: its weights are stored quantized", ALONE
        )
    _check_heads(name, config, form.ranks)


def _check_heads(name: str, config: Any, ranks: int) -> None:
    if not heads_are_split(config):
        return
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % ranks == 0 and kv_heads % ranks == 0:
        return
    common = gcd(heads, kv_heads)
    numbers = [str(number) for number in range(2, common + 1) if common % number == 0]
    raise UsageError(
        f"{name} has {heads} attention heads and {kv_heads} of keys and values, which "
        f"{ranks} ranks cannot share evenly",
        f"start {' or '.join(numbers)} ranks" if numbers else ALONE,
    )


def refuse_other_device(asked: str, launch: Launch, gpus: int) -> None:
    """Refuses a device that ranks cannot have.

    Args:
        asked: the option.
        gpus: how many torch finds on this machine.

    Raises:
        UsageError: with what to do instead.
    """
    if asked == "cpu" and gpus:
        raise UsageError(
            "with several ranks on a machine with GPUs, transformers runs on these",
            "to run on the CPU, hide them: CUDA_VISIBLE_DEVICES= torchrun …",
            field="device",
        )
    if asked.startswith("cuda:"):
        raise UsageError(
            (Setting("device"), f' is "{asked}", but each rank has a GPU of its own'),
            ("leave it out; CUDA_VISIBLE_DEVICES says which GPUs there are"),
        )
    if gpus and launch.ranks_here > gpus:
        raise D3Error(
            f"torchrun has started {launch.ranks_here} ranks on a machine with "
            f"{gpus} {'GPU' if gpus == 1 else 'GPUs'}, and each needs one",
            f"torchrun --nproc-per-node {gpus}" if gpus > 1 else ALONE,
        )
