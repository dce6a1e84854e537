"""GPUs that do not exist: each tensor has a device by name, and tensors of two devices never meet.

The arithmetic is the CPU's, so results can be compared to the last bit. As on real GPUs, moving a
tensor is explicit, and an operation on tensors of two devices is an error.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# Those that real GPUs allow as well: copies, and indices on the CPU.
_MAY_MIX = (
    torch.Tensor.copy_,
    torch.Tensor.__setitem__,
    torch.Tensor.__getitem__,
    torch.Tensor.data.__set__,  # type: ignore[attr-defined]
)
_WHERE = torch.Tensor.device.__get__  # type: ignore[attr-defined]


class OnGPU(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    place: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendedGPUs(TorchFunctionMode):
    """Inside this context there are GPUs. Their generators of random numbers are the CPU's."""

    def __enter__(self) -> Any:
        self._generator = torch.Generator
        torch.Generator = lambda device="cpu": self._generator()  # type: ignore[assignment,misc]
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        torch.Generator = self._generator  # type: ignore[misc]
        super().__exit__(*failure)

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = dict(options or {})
        if function == _WHERE:  # a new object at each access
            return _place(arguments[0])
        if function is torch.Tensor.cpu:
            function, options = torch.Tensor.to, {"device": "cpu"}
        wanted = options.pop("device", None)
        if function is torch.Tensor.to:
            first = arguments[1] if len(arguments) > 1 else None
            if isinstance(first, (str, torch.device)):
                wanted, arguments = first, (arguments[0], *arguments[2:])
            elif isinstance(first, torch.Tensor):
                wanted, arguments = _place(first), (arguments[0], first.dtype)
        wanted = None if wanted is None else torch.device(wanted)
        tensors = (*_tensors(arguments), *_tensors(options.values()))
        places = {_place(tensor) for tensor in tensors if tensor.dim()}
        if len(places) > 1 and function not in _MAY_MIX:
            raise RuntimeError(f"{function.__name__} of tensors on {sorted(map(str, places))}")
        if wanted is not None and wanted.type != "cuda":
            options["device"] = wanted
        found = function(*arguments, **options)
        own = next(iter(places), torch.device("cpu"))
        if arguments and isinstance(arguments[0], torch.Tensor) and arguments[0].dim():
            own = _place(arguments[0])
        target = own if wanted is None else wanted
        if function is torch.Tensor.to and target != own:
            found = found.clone()
        if isinstance(found, torch.Tensor):
            return _put(found, target)
        return tree_map_only(torch.Tensor, lambda tensor: _put(tensor, target), found)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among arguments and in their lists: torch's own way takes longer than a step."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _place(tensor: torch.Tensor) -> torch.device:
    return tensor.place if isinstance(tensor, OnGPU) else tensor.device


def _put(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    if place.type != "cuda" or (isinstance(tensor, OnGPU) and tensor.place == place):
        return tensor
    on_gpu = tensor.as_subclass(OnGPU)
    on_gpu.place = place
    return on_gpu
