"""A causal language model with the gate on it.

`LoadedModel` turns ids into hidden states and hidden states into logits. The rest of d3cli sees a
Hugging Face model only through it. Knows nothing of files, replies or terminals, and not what a
schedule means.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from d3cli.base.errors import ScheduleError, Setting, Words
from d3cli.depth.prompt_order import Schedule
from d3cli.depth.resolve import resolve_schedule
from d3cli.depth.units import UnitChoice, WeightBytes, parse_unit
from d3cli.model.decoder_pass import MOST_TOKENS
from d3cli.model.decoder_stack import DecoderStack
from d3cli.model.gate import LayerGate
from d3cli.model.influence import InfluenceMeter
from d3cli.model.influence_table import InfluenceHistory
from d3cli.model.kv_cache import KVCache
from d3cli.model.origin import Origin
from d3cli.model.placement import Placement
from d3cli.model.reruns import NoteRerun, rerunning
from d3cli.model.text_side import TextSide

if TYPE_CHECKING:
    from d3cli.model.ranks.leader import Leader


class _FinalStates:
    """A decoder's output with its final hidden states and nothing else."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        """None for caches, attentions, router logits, and whatever else a family asks for."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to decode at any depth.

    Attributes:
        name: what to call it in messages.
        causal_lm: the Hugging Face model, gated, in eval mode.
        gate: switches layers and sublayers.
        weight_bytes: bytes that a decode step reads.
        context_length: positions that the model was made for.
        text: its tokenizer and what else a reply needs.
        origin: where it comes from, and the depth schedule that belongs to it.
        notes: what a user should know about how it was loaded.
        blocks: runs passes over a few tokens on a CPU; None leaves them to transformers' layers.
        leader: makes the other ranks compute each pass, if the model is split over ranks.
        placement: where its layers lie; None if one device holds all of it.
        influence: its units' influence on what it has read so far, where that was measured.
    """

    name: str
    causal_lm: Any
    gate: LayerGate
    weight_bytes: WeightBytes
    context_length: int
    text: TextSide
    origin: Origin = field(default_factory=Origin)
    notes: tuple[Words, ...] = ()
    blocks: DecoderStack | None = None
    leader: "Leader | None" = None
    placement: Placement | None = None
    influence: InfluenceHistory = field(
        default_factory=InfluenceHistory, init=False, repr=False, compare=False
    )

    @property
    def tokenizer(self) -> Any:
        return self.text.tokenizer

    @property
    def num_layers(self) -> int:
        return len(self.gate.layers)

    @property
    def dtype(self) -> str:
        """What it computes in: "bfloat16"."""
        return str(self.causal_lm.dtype).removeprefix("torch.")

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
        units: UnitChoice = "auto",
    ) -> Schedule:
        """The depth schedule for these options and this model; see `resolve_schedule`.

        Raises:
            ScheduleError: the options do not fit the model.
        """
        if units == "sublayer":
            self.check_sublayers()
        return resolve_schedule(
            self.weight_bytes,
            alpha,
            start=start,
            core_first=core_first,
            core_last=core_last,
            units=units,
            stored=self.origin.schedule,
        )

    def check_schedule(self, schedule: Schedule) -> None:
        """Raises ScheduleError if a schedule does not fit this model's layers."""
        if schedule.num_layers != self.num_layers:
            raise ScheduleError(
                f"the depth schedule is for {schedule.num_layers} layers, and {self.name} has "
                f"{self.num_layers}",
                "make one with LoadedModel.schedule",
            )
        if schedule.units and not self.gate.family.can_skip:
            raise ScheduleError(
                f"{self.name} runs at full depth only", ("use ", Setting("alpha", "off"))
            )
        units = [parse_unit(name) for name in schedule.units]
        if any(unit.kind == "sublayer" for unit in units):
            self.check_sublayers()
        missing = [unit for unit in units if unit.low and not self.weight_bytes.has(unit.name)]
        if missing:
            raise ScheduleError(
                f"the skip order names the low plane {missing[0].name}, and {self.name}, as it is "
                "loaded, has none there",
                ("load it with ", Setting("quantization", "nested")),
            )

    def check_sublayers(self) -> None:
        """Raises ScheduleError if this model's sublayers cannot be dropped."""
        if not self.gate.family.has_sublayers:
            raise ScheduleError(
                f"{self.name} cannot drop sublayers: its layers have no separate sublayers",
                ("drop whole layers: ", Setting("units", "layer")),
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
        meter: InfluenceMeter | None = None,
    ) -> Tensor:
        """Final hidden states ``[B, S, H]``, after the last norm, of ``token_ids`` ``[B, S]``.

        Args:
            limits: units that run on the first positions only; see `LayerGate.limits`.
            states: outputs of layers that need not run; see `LayerGate.states`.
            meter: measures the units' influence in this pass, which must run all of them.

        Raises:
            UsageError: another thread is using the model.
        """
        blocks = self.blocks
        few = len(token_ids) == 1 and token_ids.shape[1] <= MOST_TOKENS
        plain = few and attention_mask is None and position_ids is None and not any(limits.values())
        if blocks is None or cache is None or not plain or states or meter or blocks.is_watched:
            return self._by_layers(
                token_ids, cache, attention_mask, position_ids, limits, states, meter
            )
        with self.gate.one_pass():
            return blocks(token_ids, cache, frozenset(limits))

    @torch.inference_mode()
    def states_of_rows(
        self,
        token_ids: Sequence[int],
        caches: Sequence[KVCache],
        dropped: Sequence[Collection[str]],
    ) -> Tensor:
        """Final hidden states ``[S, H]`` of one more token of each of S sequences.

        On a CPU this is one pass, which reads each layer's weights once for all that keep the same
        of it; elsewhere it is S passes.

        Args:
            caches: the sequences' KV caches, which then hold the tokens; `commit` each.
            dropped: for each sequence, the units that do not run.

        Raises:
            UsageError: another thread is using the model.
        """
        blocks, device = self.blocks, self.device
        if blocks is not None and not blocks.is_watched and len(token_ids) > 1:
            with self.gate.one_pass():
                return blocks.rows(torch.tensor(token_ids), caches, [*map(frozenset, dropped)])
        states = [
            self.hidden_states(
                torch.tensor([[id_]], device=device), cache, limits=dict.fromkeys(units, 0)
            )
            for id_, cache, units in zip(token_ids, caches, dropped, strict=True)
        ]
        return torch.cat(states)[:, 0]

    def _by_layers(
        self,
        token_ids: Tensor,
        cache: KVCache | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        limits: Mapping[str, int],
        states: Mapping[str, Tensor],
        meter: InfluenceMeter | None,
    ) -> Tensor:
        """As `hidden_states`, by transformers' own layers."""
        measured = nullcontext() if meter is None else meter.watching()
        leads = self.leader
        together = (
            nullcontext()
            if leads is None
            else leads.states(token_ids, cache, attention_mask, position_ids, limits, states)
        )
        with self.gate.one_pass(), together, self.gate.limited(limits, states), measured:
            output = self.gate.decoder(
                input_ids=token_ids,
                past_key_values=cache,
                use_cache=cache is not None,
                attention_mask=attention_mask,
                position_ids=position_ids,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    @torch.inference_mode()
    def without_units(self, token_ids: Tensor, units: Sequence[str], note: NoteRerun) -> None:
        """A pass at full depth over ``[B, S]``, in which layers run again without units.

        Args:
            note: is called for each unit; see `rerunning`.

        Raises:
            UsageError: another thread is using the model.
        """
        leads = self.leader
        together = nullcontext() if leads is None else leads.without_units(token_ids, units)
        with self.gate.one_pass(), together, rerunning(self.gate, units, note):
            self.gate.decoder(input_ids=token_ids, use_cache=False)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[..., V]`` of final hidden states ``[..., H]``.

        Some families scale or cap their logits after the LM head. So the model's own forward
        computes them, with a decoder that returns the given states.
        """
        decoder = self.gate.decoder
        states = hidden.reshape(1, -1, hidden.shape[-1])
        together = nullcontext() if self.leader is None else self.leader.logits(states)
        with self.gate.one_pass(), together:
            own = vars(decoder).get("forward")  # such as accelerate's hooks
            decoder.forward = lambda *_, **__: _FinalStates(states)
            try:
                logits: Tensor = self.causal_lm(inputs_embeds=states, use_cache=False).logits
            finally:
                if own is None:
                    del decoder.forward
                else:
                    decoder.forward = own
        return logits.float().reshape(*hidden.shape[:-1], -1)
