"""Figures of one reply: counts, times, depths, memory. Knows nothing of how they are measured."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from d3cli.decode.draft.source import Verification
from d3cli.decode.loop import DecodedToken, SourceName
from d3cli.model.model import LoadedModel


@dataclass(frozen=True, slots=True)
class DraftStats:
    """Tokens that one source drafted, how many of them were accepted, and in how many drafts."""

    drafted: int
    accepted: int
    drafts: int


@dataclass(frozen=True, slots=True)
class LosslessStats:
    """Figures of a lossless reply, over its decode steps.

    Attributes:
        drafted, accepted: tokens.
        passes: passes at full depth, plain steps included.
        tokens_per_pass: None without a pass.
        speedup: the time that plain steps alone would have taken, over that of drafts and passes.
            Plain steps between the drafts were timed for this. None without a pass.
        draft_s, verify_s: seconds spent on drafts and on passes.
        sources: the same by what drafted.
    """

    drafted: int
    accepted: int
    passes: int
    tokens_per_pass: float | None
    speedup: float | None
    draft_s: float
    verify_s: float
    sources: Mapping[SourceName, DraftStats]

    @classmethod
    def of(
        cls, verifications: Sequence[Verification], tokens: int, step_s: float | None
    ) -> "LosslessStats":
        """The figures of these passes.

        Args:
            tokens: how many of the tokens that the passes gave are in the reply. A stop string may
                end it before the others.
            step_s: seconds that a plain step takes; None if unknown.
        """
        passes = len(verifications)
        draft_s = sum(done.draft_s for done in verifications)
        verify_s = sum(done.verify_s for done in verifications)
        sources: dict[SourceName, DraftStats] = {}
        for done in verifications:
            if done.source is not None:
                so_far = sources.get(done.source, DraftStats(0, 0, 0))
                sources[done.source] = DraftStats(
                    so_far.drafted + len(done.draft_ids),
                    so_far.accepted + done.accepted,
                    so_far.drafts + 1,
                )
        return cls(
            drafted=sum(each.drafted for each in sources.values()),
            accepted=sum(each.accepted for each in sources.values()),
            passes=passes,
            tokens_per_pass=tokens / passes if passes else None,
            speedup=tokens * step_s / (draft_s + verify_s) if passes and step_s else None,
            draft_s=draft_s,
            verify_s=verify_s,
            sources=sources,
        )

    def __add__(self, other: "LosslessStats") -> "LosslessStats":
        """The figures of several replies together."""
        both, passes = (self, other), self.passes + other.passes
        tokens = sum(one.passes * one.tokens_per_pass for one in both if one.tokens_per_pass)
        timed = [(one.speedup, one.draft_s + one.verify_s) for one in both if one.speedup]
        taken = sum(seconds for _, seconds in timed)
        sources = dict(self.sources)
        for name, new in other.sources.items():
            old = sources.get(name, DraftStats(0, 0, 0))
            sources[name] = DraftStats(
                old.drafted + new.drafted, old.accepted + new.accepted, old.drafts + new.drafts
            )
        return LosslessStats(
            drafted=self.drafted + other.drafted,
            accepted=self.accepted + other.accepted,
            passes=passes,
            tokens_per_pass=tokens / passes if passes else None,
            speedup=sum(speedup * seconds for speedup, seconds in timed) / taken if taken else None,
            draft_s=self.draft_s + other.draft_s,
            verify_s=self.verify_s + other.verify_s,
            sources=sources,
        )


@dataclass(frozen=True, slots=True)
class RunStats:
    """Figures of one reply of N tokens.

    Attributes:
        prompt_tokens, completion_tokens: token counts; the end token counts.
        ttft_s: seconds from the request to the first token; None without a token.
        decode_s: seconds of the decode steps ``1 .. N - 1``.
        tokens_per_second, mean_depth, min_depth: over the decode steps; None without one.
        layer_ratio, byte_ratio: full depth over this reply, in layers and in bytes of weights, over
            the decode steps; None without one. The KV cache and a later repair are not counted.
        full_bits, bits, min_bits: bits read for each weight of the layers: at full depth, on
            average and at least; None without a decode step, or if the weights are not nested.
        peak_memory_bytes: see `peak_memory`.
        seed: None if sampling was greedy.
        lossless: what was drafted and accepted; None unless the reply is lossless.
    """

    prompt_tokens: int
    completion_tokens: int
    ttft_s: float | None
    decode_s: float
    tokens_per_second: float | None
    mean_depth: float | None
    min_depth: float | None
    layer_ratio: float | None
    byte_ratio: float | None
    full_bits: float | None
    bits: float | None
    min_bits: float | None
    peak_memory_bytes: int
    seed: int | None
    lossless: LosslessStats | None = None

    @classmethod
    def of(
        cls,
        tokens: Sequence[DecodedToken],
        model: LoadedModel,
        *,
        prompt_tokens: int,
        ttft_s: float,
        decode_s: float,
        seed: int | None,
        lossless: LosslessStats | None,
    ) -> "RunStats":
        """The figures of these tokens. `ttft_s` means nothing without a token."""
        steps, weights = tokens[1:], model.weight_bytes
        depths, read = [token.depth for token in steps], [token.bytes_read for token in steps]
        mean = sum(depths) / len(depths) if depths else None
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=len(tokens),
            ttft_s=ttft_s if tokens else None,
            decode_s=decode_s,
            tokens_per_second=len(steps) / decode_s if steps and decode_s > 0 else None,
            mean_depth=mean,
            min_depth=min(depths, default=None),
            layer_ratio=model.num_layers / mean if mean else None,
            byte_ratio=weights.ratio(len(steps), sum(read)),
            full_bits=weights.bits(weights.total) if steps else None,
            bits=weights.bits(sum(read) / len(steps)) if steps else None,
            min_bits=weights.bits(min(read)) if steps else None,
            peak_memory_bytes=peak_memory(model.device),
            seed=seed,
            lossless=lossless,
        )


def peak_memory(device: torch.device) -> int:
    """The most bytes that the process has held at once; on a GPU, that torch has held there."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # getrusage also counts what the parent process held when it forked.
        with suppress(OSError, LookupError, ValueError):  # some containers hide it
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on BSDs
