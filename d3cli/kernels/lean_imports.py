"""Imports torch and transformers without parts that d3 never uses, which take half of the time.

Importing one model class of transformers also imports torch's compiler, its distributed tensors,
scipy's optimizers and an imaging library. This is for the ``d3`` command only: a program that uses
d3cli as a library may want those parts.

- torch's compiler (``torch._dynamo``) is loaded when something first needs it. Until then its
  decorators return what they get. They matter to compiled code alone, and d3 compiles nothing.
- transformers is told that the others are not installed, which it supports. It asks once and
  remembers.

`scripts/bench_start.py` measures what this saves. Both are tested against the pinned versions.
"""

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
NEEDED = "torch._dynamo._trace_wrapped_higher_order_op"  # by transformers' masks
DECORATORS = ("allow_in_graph", "assume_constant_result", "disable")
UNUSED = ("is_torch_distributed_available", "is_scipy_available", "is_vision_available")


class _LoadedWhenNeeded(ModuleType):
    """A package that is executed when something first asks for a name that it lacks.

    Submodules can be imported before that as long as it has a ``__path__``.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # which the import system may lack
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = self.__spec__
        assert spec is not None and spec.loader is not None
        assert spec.submodule_search_locations is not None
        self.__path__ = spec.submodule_search_locations
        spec.loader.exec_module(self)
        return getattr(sys.modules[self.__name__], name)  # it may have replaced itself


def import_libraries() -> None:
    """Imports torch and transformers, once and for good, without the parts above.

    Under torchrun, everything is imported. What a program has imported before stays.
    """
    import torch  # noqa: F401

    if "RANK" in os.environ or COMPILER in sys.modules or "transformers" in sys.modules:
        return
    compiler = _load_when_needed(COMPILER)
    for decorator in DECORATORS:
        setattr(compiler, decorator, _unchanged)
    importlib.import_module(NEEDED)
    del compiler.__path__  # its other submodules need all of it

    from transformers import utils
    from transformers.utils import import_utils

    for name in UNUSED:
        for module in (utils, import_utils):
            setattr(module, name, _no)
    _load_when_needed("transformers.models")


def _load_when_needed(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _LoadedWhenNeeded
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
    return module


def _no() -> bool:
    return False


def _unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
    """Stands for the compiler's decorators, used with or without arguments."""
    return (lambda found: found) if function is None else function
