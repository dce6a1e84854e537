"""A corpus of what hostile strangers write: models, draft models, and files that d3 reads.

Each is a small change to a good one.
"""

# Each module registers its changes.
from tests.hostile import (  # noqa: F401
    calibrations,
    configs,
    files,
    gguf,
    gguf_files,
    gguf_metadata,
    gguf_tokenizers,
    inputs,
    tokenizers,
    traces,
    weights,
)
from tests.hostile.drafts import HARMLESS_DRAFTS, REFUSED_DRAFTS
from tests.hostile.gguf_registry import HARMLESS_GGUF, REFUSED_GGUF
from tests.hostile.registry import HARMLESS, REFUSED, Change
from tests.hostile.stored_registry import DOORS, Door

__all__ = [
    "DOORS",
    "HARMLESS",
    "HARMLESS_DRAFTS",
    "HARMLESS_GGUF",
    "REFUSED",
    "REFUSED_DRAFTS",
    "REFUSED_GGUF",
    "Change",
    "Door",
]
