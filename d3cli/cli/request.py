"""What the options of a reply ask for: checked first, then turned into a loaded model's terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3cli.base.errors import UsageError
from d3cli.cli import options
from d3cli.cli.depth import choose_schedule, parse_alpha, parse_start
from d3cli.cli.loading import load
from d3cli.cli.output import Output
from d3cli.cli.prompts import check_utf8, estimate_tokens, read_text
from d3cli.decode.sampling import SamplingParams
from d3cli.depth.calibration_store import calibrate_command
from d3cli.depth.choice import Source
from d3cli.depth.schedule import DepthSchedule

if TYPE_CHECKING:
    from d3cli.model.model import LoadedModel


@dataclass(frozen=True, slots=True)
class Ready:
    """A model, and what the options mean for it."""

    model: "LoadedModel"
    schedule: DepthSchedule
    source: Source
    sampling: SamplingParams
    chat_template: str | None
    think: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of `d3 generate` and `d3 profile` that say how a reply is made, as typed."""

    raw: bool
    system: str | None
    chat_template: Path | None
    think: options.Think | None
    alpha: str
    start: str | None
    core: tuple[int | None, int | None]
    sampling: Mapping[str, Any]
    max_tokens: int | None
    stop: Sequence[str] | None
    dtype: options.DtypeName
    quantization: options.QuantizationName | None
    quantize_head: options.HeadName | None
    device: str
    threads: int | None
    offline: bool
    force: bool
    verify: bool

    def prepare(self, output: Output, model_name: str, longest_prompt: str) -> Ready:
        """Checks the options and loads the model.

        Raises:
            UsageError: an option is impossible; before the model is loaded, wherever that can be.
        """
        if self.raw and (self.system or self.chat_template or self.think):
            raise UsageError(
                "--raw uses no chat template, so no --system, --chat-template or --think",
                "leave those out, or leave out --raw",
            )
        # Checked before the slow part: a wrong number should not cost a model's loading.
        decay = parse_alpha(self.alpha)
        start = parse_start(self.start, self.max_tokens)
        SamplingParams.resolve(self.sampling, {})
        template = None
        if self.chat_template is not None:
            template = read_text(self.chat_template, "chat template")
        texts = [("--system", self.system), *(("--stop", text) for text in self.stop or ())]
        for name, text in texts:
            check_utf8(text or "", name)
        loaded = load(
            output,
            model_name,
            self.offline,
            self.threads,
            dtype=self.dtype.value,
            quantization=None if self.quantization is None else self.quantization.value,
            quantize_head=None if self.quantize_head is None else self.quantize_head.value,
            device=self.device,
            full_depth_only=decay == "off",
            prompt_tokens=estimate_tokens(longest_prompt, self.system or ""),
            **({} if self.max_tokens is None else {"reply_tokens": self.max_tokens}),
            force=self.force,
            verify=self.verify,
        )
        command = calibrate_command(model_name, self.dtype.value, self.quantization)
        choice = choose_schedule(loaded, decay, start, self.core, command)
        for note in choice.notes:
            output.note(note)
        if not self.raw and not (template or loaded.tokenizer.chat_template):
            output.note("this model has no chat template: it continues the prompt as it is")
        return Ready(
            loaded,
            choice.schedule,
            choice.source,
            SamplingParams.resolve(self.sampling, loaded.text.generation_settings),
            template,
            None if self.think is None else self.think is options.Think.on,
        )
