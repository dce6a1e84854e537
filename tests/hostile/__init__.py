"""A corpus of models from a hostile stranger. Each is a small change to a good model."""

from tests.hostile import configs, files, tokenizers, weights  # noqa: F401 - each registers its models
from tests.hostile.registry import HARMLESS, REFUSED, Change

__all__ = ["HARMLESS", "REFUSED", "Change"]
