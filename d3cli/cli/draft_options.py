"""The options of the lossless mode, shared by the commands that write replies."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from d3cli.base.errors import Setting, UsageError
from d3cli.cli.completion import complete_model
from d3cli.cli.model_options import QuantizationName

if TYPE_CHECKING:
    from d3cli.decode.draft.drafter import SourceChoice

LOSSLESS = "Lossless mode"


class LosslessName(StrEnum):
    """What drafts, if anything. The first one is meant where none is named."""

    auto = "auto"
    lookup = "lookup"
    depth = "depth"
    model = "model"
    off = "off"


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a lossless reply is drafted.

    Attributes:
        source: what drafts.
        model: the name of the draft model; None for none.
        quantization: in which form the draft model is loaded.
    """

    source: "SourceChoice"
    model: str | None = None
    quantization: QuantizationName = QuantizationName.auto

    @property
    def by_depth(self) -> bool:
        """Whether the model itself may draft, at less depth."""
        return self.source in ("auto", "depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """Whether replies are drafted and verified, and what drafts them."""

    lossless: Annotated[
        LosslessName | None,
        typer.Option(
            envvar="D3_LOSSLESS",
            rich_help_panel=LOSSLESS,
            help="Full depth's own reply, sooner: something cheap drafts tokens, and full depth "
            "verifies them, several in one pass. lookup: drafts what followed the last tokens "
            "before, in the prompt or the reply. depth: drafts at less depth; --alpha and the "
            "other depth options are then for the drafts. model: drafts with --draft-model. "
            "auto, or no word: whichever promises the most at each token. off: plain decoding.",
        ),
    ] = None
    draft_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            autocompletion=complete_model,
            rich_help_panel=LOSSLESS,
            help="A smaller model with the same tokenizer, which drafts: an alias, a hub id, a "
            "directory or a GGUF file. Implies --lossless.",
        ),
    ] = None
    draft_quantization: Annotated[
        QuantizationName,
        typer.Option(rich_help_panel=LOSSLESS, help="--quantization of the draft model."),
    ] = QuantizationName.auto

    def read(self) -> Drafting | None:
        """What drafts; None for plain decoding.

        Raises:
            UsageError: a draft model is needed and not named, or named and not used.
        """
        asked = self.lossless
        source: SourceChoice | Literal["off"] | None = None if asked is None else asked.value
        if self.draft_model is not None:
            if source in ("lookup", "depth", "off"):
                raise UsageError(
                    (Setting("lossless", source), " uses no draft model"),
                    ("leave out ", Setting("draft_model"), ", or use ", Setting("lossless")),
                )
        elif source == "model":
            raise UsageError(
                (Setting("lossless", source), " needs a draft model"),
                ("name a smaller model with the same tokenizer: ", Setting("draft_model")),
            )
        elif self.draft_quantization is not QuantizationName.auto:
            raise UsageError(
                (Setting("draft_quantization"), " is given, but no draft model"),
                ("name one with ", Setting("draft_model")),
            )
        if source == "off" or (source is None and self.draft_model is None):
            return None
        return Drafting(source or "auto", self.draft_model, self.draft_quantization)
