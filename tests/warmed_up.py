"""Does once, in a process that forks, what each of its children would else do again."""

import gc
import importlib
import os
import pkgutil
import tempfile
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

# Needs a package that is not among those of the tests.
OPTIONAL = "d3cli.evals.harness"


def warm_up(*modules: str) -> None:
    """Imports d3 and what it needs, and `modules`, and loads the built-in model."""
    _import_all()
    for module in modules:
        importlib.import_module(module)
    # A child would warn that it was forked from a process that encoded text in several threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with (
        tempfile.TemporaryDirectory() as home,
        patch.dict(os.environ, {"D3_HOME": home, "D3_KERNELS": "torch"}),
    ):
        _load_and_encode()
    # What exists now stays; a child that collects garbage need not look through it.
    gc.collect()
    gc.freeze()


def set_constants(constants: Mapping[str, Any]) -> None:
    """Gives module attributes other values: ``{"d3cli.cli.chat.keyboard:AT_ONCE": 0.0}``."""
    for name, value in constants.items():
        module, _, attribute = name.partition(":")
        assert hasattr(importlib.import_module(module), attribute), name
        setattr(importlib.import_module(module), attribute, value)


def _import_all() -> None:
    import d3cli

    for module in pkgutil.walk_packages(d3cli.__path__, "d3cli."):
        if not module.name.endswith("__main__") and module.name != OPTIONAL:
            importlib.import_module(module.name)


def _load_and_encode() -> None:
    """Computes nothing: oneDNN reads the environment at its first use, and children have others."""
    from d3cli.decode.session import Engine
    from d3cli.model.load import load_model

    Engine(load_model(dtype="float32", device="cpu")).stream("Hi.")
