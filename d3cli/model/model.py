"""A causal language model with the gate on it.

`LoadedModel` is all that the rest of d3cli sees of a Hugging Face model: ids to hidden states,
hidden states to logits. Knows nothing of files, schedules' meaning, replies or terminals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from d3cli.base.errors import ModelError, ScheduleError, one_line
from d3cli.depth.calibration_record import Calibration, ModelKey
from d3cli.depth.calibration_store import Stale
from d3cli.depth.choice import resolve_schedule
from d3cli.depth.families import OTHER_TYPE, UNLISTED, find_family, not_proven
from d3cli.depth.schedule import DepthSchedule
from d3cli.depth.units import WeightBytes, parse_unit
from d3cli.files.json_files import BROKEN_FILES
from d3cli.kernels.grouped_attention import group_queries
from d3cli.model.gate import LayerGate
from d3cli.model.kv_cache import KVCache
from d3cli.model.weight_bytes import measure_bytes
from d3cli.text.chat_template import Renderer


class _FinalStates:
    """A decoder's output that holds its final hidden states and nothing else."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        """Caches, attentions, router logits: families ask for different ones; there are none."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to decode at any depth.

    Attributes:
        name: what to call it before the user.
        causal_lm: the Hugging Face model, gated, in eval mode.
        tokenizer: its tokenizer.
        gate: switches layers and sublayers.
        weight_bytes: bytes that a decode step reads.
        context_length: positions that the model was made for.
        eos_token_ids: tokens that end a reply.
        generation_settings: the checkpoint's generation_config.json.
        stored_schedule: its own depth schedule, calibrated or shipped with it, if it has one.
        notes: what a user should know of how it was loaded.
        key: what a calibration of it is kept under; None where it does not come from files, or
            can run at full depth only.
        calibration: what the store holds for it, or why that does not count.
        builtin: whether it is the model that ships with d3cli.
        renderer: renders chat templates; this model's own in a child process, unless the model is
            known by name.
    """

    name: str
    causal_lm: Any
    tokenizer: Any
    gate: LayerGate
    weight_bytes: WeightBytes
    context_length: int
    eos_token_ids: frozenset[int]
    generation_settings: Mapping[str, Any]
    stored_schedule: DepthSchedule | None = None
    notes: tuple[str, ...] = ()
    key: ModelKey | None = None
    calibration: Calibration | Stale | None = None
    builtin: bool = False
    renderer: Renderer = field(default_factory=Renderer)

    @property
    def schedule_source(self) -> Literal["calibration", "shipped"] | None:
        """Where `stored_schedule` comes from."""
        if isinstance(self.calibration, Calibration):
            return "calibration"
        return None if self.stored_schedule is None else "shipped"

    @property
    def num_layers(self) -> int:
        return len(self.gate.layers)

    @property
    def device(self) -> torch.device:
        return torch.device(self.causal_lm.device)

    def schedule(
        self,
        alpha: float | Literal["auto", "off"] = "auto",
        *,
        start: int | None = None,
        core_first: int | None = None,
        core_last: int | None = None,
    ) -> DepthSchedule:
        """The depth schedule that these options mean for this model; see `resolve_schedule`.

        Raises:
            ScheduleError: the options do not fit the model.
        """
        return resolve_schedule(
            self.num_layers,
            alpha,
            start=start,
            core_first=core_first,
            core_last=core_last,
            stored=self.stored_schedule,
        )

    def check_schedule(self, schedule: DepthSchedule) -> None:
        """Raises ScheduleError where a schedule does not fit this model's layers."""
        if schedule.num_layers != self.num_layers:
            raise ScheduleError(
                f"the depth schedule is for {schedule.num_layers} layers, and {self.name} has "
                f"{self.num_layers}",
                "make one with LoadedModel.schedule",
            )
        if schedule.skip_order and not self.gate.family.can_skip:
            raise ScheduleError(f"{self.name} runs at full depth only", "use --alpha off")
        parts = [name for name in schedule.skip_order if parse_unit(name).part]
        if parts and not self.gate.family.has_sublayers:
            raise ScheduleError(
                f'{self.name} cannot drop "{parts[0]}": its layers have no sublayers of their own',
                "use whole layers",
            )

    def new_cache(self) -> KVCache:
        return KVCache.for_config(self.causal_lm.config)

    @torch.inference_mode()
    def hidden_states(
        self,
        token_ids: Tensor,
        cache: KVCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        limits: Mapping[str, int] = MappingProxyType({}),
        states: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """Final hidden states ``[B, S, H]``, after the last norm, of ``token_ids`` ``[B, S]``.

        Args:
            limits: units that run on a prefix of the positions only; see `LayerGate.limits`.
            states: what layers give that need not run; see `LayerGate.states`.

        Raises:
            UsageError: another thread is using the model.
        """
        with self.gate.one_pass():
            self.gate.limits, self.gate.states = limits, states
            try:
                output = self.gate.decoder(
                    input_ids=token_ids,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                )
            finally:
                self.gate.limits, self.gate.states = MappingProxyType({}), MappingProxyType({})
        hidden: Tensor = output.last_hidden_state
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[..., V]`` of final hidden states ``[..., H]``.

        Families scale or cap their logits after the LM head, so the model's own forward does it:
        the decoder below is replaced by the states that it would have given.
        """
        decoder = self.gate.decoder
        states = hidden.reshape(1, -1, hidden.shape[-1])
        with self.gate.one_pass():
            own = vars(decoder).get("forward")  # accelerate's hooks, say
            decoder.forward = lambda *_, **__: _FinalStates(states)
            try:
                logits: Tensor = self.causal_lm(inputs_embeds=states, use_cache=False).logits
            finally:
                if own is None:
                    del decoder.forward
                else:
                    decoder.forward = own
        return logits.float().reshape(*hidden.shape[:-1], -1)


def wrap_model(
    causal_lm: Any,
    tokenizer: Any,
    *,
    name: str = "model",
    generation_settings: Mapping[str, Any] | None = None,
    stored_schedule: DepthSchedule | None = None,
    notes: Sequence[str] = (),
    full_depth_only: bool = False,
    renderer: Renderer | None = None,
) -> LoadedModel:
    """Makes a `LoadedModel` of a Hugging Face causal language model that is already in memory.

    The layers are gated from now on, one token's queries attend in groups, and the model is in eval
    mode; at full depth it computes what it did before.

    Args:
        full_depth_only: nothing will be dropped, so a decoder that no test proves may run, too.

    Raises:
        ModelError: its stack cannot skip layers.
    """
    config = causal_lm.config
    family = find_family(config.model_type)
    if family is UNLISTED and not full_depth_only:
        raise not_proven(config.model_type)
    group_queries(causal_lm)
    gate = LayerGate(causal_lm.eval(), family)
    settings = dict(generation_settings or {})
    model = LoadedModel(
        name=name,
        causal_lm=causal_lm,
        tokenizer=tokenizer,
        gate=gate,
        weight_bytes=measure_bytes(causal_lm, gate),
        context_length=_context_length(name, config),
        eos_token_ids=_eos_token_ids(settings, config, tokenizer),
        generation_settings=settings,
        stored_schedule=stored_schedule,
        notes=tuple(notes),
        renderer=renderer or Renderer(),
    )
    if family is UNLISTED:
        _try_out(model)
    return model


def _try_out(model: LoadedModel) -> None:
    """Compares an unlisted model's logits through d3 with those of its own forward.

    Raises:
        ModelError: they differ: its decoder or its cache is not where transformers' others are.
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
    except Exception as error:  # whatever an unknown model's code raises
        raise _not_runnable(model, one_line(error)[:120]) from error
    if not same:
        raise _not_runnable(model, "its results differ from those of transformers")


def _not_runnable(model: LoadedModel, reason: str) -> ModelError:
    return ModelError(
        f'{model.name} is of the type "{model.causal_lm.config.model_type}", which d3 cannot run: '
        f"{reason}",
        OTHER_TYPE,
    )


def _context_length(name: str, config: Any) -> int:
    """Positions for which one rotary table serves the whole sequence.

    LongRoPE (Phi-3 128k and others) changes to a second table once a sequence outgrows the
    original context. Keys that are already cached keep the first one, so chunks, repair and one
    pass would no longer agree: the original context is the limit here.

    Raises:
        ModelError: there is no room for a prompt and a reply.
    """
    longest = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings")
        longest = min(longest, int(original or config.original_max_position_embeddings))
    if longest < 2:
        raise ModelError(f"the context of {name} is {longest} token long", BROKEN_FILES)
    return longest


def _eos_token_ids(settings: Mapping[str, Any], config: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a reply: the checkpoint's, and the tokenizer's own."""
    named = settings.get("eos_token_id", config.eos_token_id)
    ids = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    if any(id_ is not None and type(id_) is not int for id_ in ids):
        raise ModelError(f"eos_token_id is {named!r}, which names no token", BROKEN_FILES)
    return frozenset(id_ for id_ in ids if id_ is not None)
