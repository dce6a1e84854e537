"""D³: position-aware depth decay decoding (arXiv 2503.08524) for local language models.

The names below are the public Python API. Each is imported on first use, since most of them need
torch, and the command line must start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d3cli.base.errors import D3Error
    from d3cli.calibrate.calibrator import Calibrator
    from d3cli.calibrate.settings import CalibrationSettings
    from d3cli.decode.agreement import Agreement
    from d3cli.decode.chunk import GenerationChunk
    from d3cli.decode.reply import Reply
    from d3cli.decode.sampling import SamplingParams
    from d3cli.decode.session import Engine
    from d3cli.decode.stats import RunStats
    from d3cli.depth.prompt_order import PromptSchedule
    from d3cli.depth.schedule import DepthSchedule
    from d3cli.model.load import load_model
    from d3cli.model.model import LoadedModel
    from d3cli.model.wrap import wrap_model
    from d3cli.scoring.documents import Document
    from d3cli.scoring.one_pass import Scorer, perplexity, score

__version__ = "0.2.0"

__all__ = [
    "Agreement",
    "CalibrationSettings",
    "Calibrator",
    "D3Error",
    "DepthSchedule",
    "Document",
    "Engine",
    "GenerationChunk",
    "LoadedModel",
    "PromptSchedule",
    "Reply",
    "RunStats",
    "SamplingParams",
    "Scorer",
    "load_model",
    "perplexity",
    "score",
    "wrap_model",
]

_HOMES = {
    "base.errors": ("D3Error",),
    "depth.prompt_order": ("PromptSchedule",),
    "depth.schedule": ("DepthSchedule",),
    "model.load": ("load_model",),
    "model.model": ("LoadedModel",),
    "model.wrap": ("wrap_model",),
    "decode.agreement": ("Agreement",),
    "decode.chunk": ("GenerationChunk",),
    "decode.reply": ("Reply",),
    "decode.sampling": ("SamplingParams",),
    "decode.session": ("Engine",),
    "decode.stats": ("RunStats",),
    "scoring.documents": ("Document",),
    "scoring.one_pass": ("Scorer", "perplexity", "score"),
    "calibrate.calibrator": ("Calibrator",),
    "calibrate.settings": ("CalibrationSettings",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"d3cli.{module}"), name)
    raise AttributeError(f"module 'd3cli' has no attribute {name!r}")
