"""A model's config.json as transformers understands it. Nothing is built from it here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from d3cli.base.errors import ModelError, one_line
from d3cli.depth.families import OTHER_TYPE
from d3cli.files.safetensors import Description

# Torch's grouped product of experts takes rows of whole 16 bytes: so many numbers in 16 bits.
GROUPED = 8
EXPERT_SIZES = ("hidden_size", "intermediate_size", "moe_intermediate_size")


def parse_config(model: Description, hint: str = "") -> Any:
    """The config with transformers' own names for its fields, and its defaults.

    Raises:
        ModelError: transformers cannot read it.
    """
    try:
        return AutoConfig.for_model(**model.config)
    except MemoryError:
        raise
    except Exception as error:  # odd values may raise anything
        raise ModelError(
            f"{model.stated_in} cannot be read: {one_line(error)[:200]}", hint or model.config_hint
        ) from error


@contextmanager
def config_errors(model: Description) -> Iterator[None]:
    """Turns errors caused by contradictory or wrongly typed values in a config into ModelError.

    Raises:
        ModelError: with the original error.
    """
    try:
        yield
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(
            f"{model.stated_in} makes no sense: {one_line(error)}", model.config_hint
        ) from error


def without_choices(config: Any) -> Any:
    """The config without its choice of kernels and of output: d3 makes these choices."""
    config._attn_implementation = None
    sizes = [getattr(config, name, None) or 0 for name in EXPERT_SIZES]
    has_experts = getattr(config, "num_experts_per_tok", None) is not None
    is_odd = has_experts and any(size % GROUPED for size in sizes)
    config._experts_implementation = "eager" if is_odd else None
    config.return_dict = True
    config.output_attentions = config.output_hidden_states = False
    return config


def model_class(config: Any) -> Any:
    """The class of causal language models for this config.

    Raises:
        ModelError: there is none.
    """
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise ModelError(
            f'models of the type "{config.model_type}" are no causal language models', OTHER_TYPE
        )
    return found
