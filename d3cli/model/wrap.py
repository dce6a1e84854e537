"""Puts the gate on a causal language model that is in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from d3cli.base.errors import ModelError, Words, one_line
from d3cli.depth.families import OTHER_TYPE, UNLISTED, find_family, not_proven
from d3cli.depth.schedule import DepthSchedule
from d3cli.kernels.grouped_attention import group_queries
from d3cli.model.block_parts import fill_blocks
from d3cli.model.context import choose_context, fix_rotary_table
from d3cli.model.gate import LayerGate
from d3cli.model.model import LoadedModel
from d3cli.model.origin import Origin
from d3cli.model.text_side import TextSide
from d3cli.model.weight_bytes import measure_bytes
from d3cli.text.renderer import Renderer

LARGEST_ID = 2**31 - 1  # of a token, for a config that does not say how many there are


def wrap_model(
    causal_lm: Any,
    tokenizer: Any,
    *,
    name: str = "model",
    generation_settings: Mapping[str, Any] | None = None,
    stored_schedule: DepthSchedule | None = None,
    notes: Sequence[Words] = (),
    full_depth_only: bool = False,
    renderer: Renderer | None = None,
    context: int | None = None,
) -> LoadedModel:
    """Makes a `LoadedModel` of a Hugging Face causal language model that is in memory.

    This changes the model for good: its layers are gated, one token's queries attend in groups, and
    it is in eval mode. At full depth it computes the same as before. Decode steps on a CPU do not
    call the modules of layers, norms and MLPs, unless they have hooks.

    Args:
        name: what to call the model in messages.
        generation_settings: the checkpoint's generation_config.json, or, if it has none, its
            config.json.
        stored_schedule: a depth schedule that came with the model.
        notes: what a user should know about how it was loaded.
        full_depth_only: nothing will be dropped, so an untested decoder may run as well.
        renderer: renders chat templates; by default in a child process.
        context: how many tokens it shall hold; by default as many as its config says.

    Raises:
        ModelError: its stack cannot skip layers.
        UsageError: it cannot hold as many tokens as `context`.
    """
    config = causal_lm.config
    family = find_family(config.model_type)
    if family is UNLISTED and not full_depth_only:
        raise not_proven(config.model_type)
    length = getattr(tokenizer, "model_max_length", None)
    chosen = choose_context(name, config, context, length)
    if chosen.fixed:
        fix_rotary_table(causal_lm, chosen.length)
    group_queries(causal_lm)
    gate = LayerGate(causal_lm.eval(), family)
    model = LoadedModel(
        name=name,
        causal_lm=causal_lm,
        gate=gate,
        weight_bytes=measure_bytes(causal_lm, gate),
        context_length=chosen.length,
        text=_text_side(config, tokenizer, renderer, dict(generation_settings or {})),
        origin=Origin(shipped=stored_schedule),
        notes=(*notes, *([] if chosen.note is None else [chosen.note])),
        blocks=fill_blocks(causal_lm, gate.decoder, family),
    )
    if family is UNLISTED:
        _try_out(model)
    return model


def _try_out(model: LoadedModel) -> None:
    """Compares an unlisted model's logits through d3 with those of its own forward.

    Raises:
        ModelError: they differ, or the model's code fails.
    """
    ids = torch.arange(3, 11, device=model.device)[None] % int(model.causal_lm.config.vocab_size)
    try:
        with torch.inference_mode():
            expected = model.causal_lm(input_ids=ids, use_cache=False).logits[0].float()
        whole = model.logits(model.hidden_states(ids)[0])
        cache, steps = model.new_cache(), []
        for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:7], ids[:, 7:]):
            steps.append(model.logits(model.hidden_states(part, cache)[0]))
            cache.commit(part.shape[1], full_depth=True)
        off = max(float((found - expected).abs().max()) for found in (whole, torch.cat(steps)))
        rounding = max(1e-4, 8 * torch.finfo(model.causal_lm.dtype).eps)
        same = off <= rounding * float(expected.abs().max())
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an unknown model's code may raise anything
        raise _not_runnable(model, one_line(error)[:120]) from error
    if not same:
        raise _not_runnable(model, "its results are not those of transformers")


def _not_runnable(model: LoadedModel, reason: str) -> ModelError:
    return ModelError(
        f'{model.name} is of the type "{model.causal_lm.config.model_type}", which d3 cannot run: '
        f"{reason}",
        OTHER_TYPE,
    )


def _text_side(
    config: Any, tokenizer: Any, renderer: Renderer | None, settings: dict[str, Any]
) -> TextSide:
    return TextSide(
        tokenizer=tokenizer,
        renderer=renderer or Renderer(),
        eos_token_ids=_eos_token_ids(settings, config, tokenizer),
        generation_settings=settings,
    )


def _eos_token_ids(settings: Mapping[str, Any], config: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a reply: the checkpoint's and the tokenizer's.

    Numbers that no token has (some configs have -1) end nothing.
    """
    named = settings.get("eos_token_id", config.eos_token_id)
    ids = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    if any(id_ is not None and type(id_) is not int for id_ in ids):
        raise ModelError(
            f"eos_token_id is {named!r}, which is not a token's number",
            "correct it in generation_config.json, or in config.json if that does not set it",
        )
    vocabulary = getattr(config, "vocab_size", None) or LARGEST_ID
    return frozenset(id_ for id_ in ids if id_ is not None and 0 <= id_ < vocabulary)
