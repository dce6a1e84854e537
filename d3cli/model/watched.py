"""Watches what modules read and return while a pass runs. Knows nothing of layers or models."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Watched:
    """Modules that tell what they read and what they return, until `end`.

    Their `forward` is wrapped. Hooks would be slower: torch calls a module with hooks in another
    way.
    """

    def __init__(self) -> None:
        # Attributes of modules, and the `forward` that was among them, if any.
        self._replaced: list[tuple[dict[str, Any], Any]] = []

    def reading(self, module: nn.Module, note: Callable[[Tensor], None]) -> None:
        """Notes the states that a module reads, before it runs."""
        forward = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            note(args[0] if args else kwargs["hidden_states"])
            return forward(*args, **kwargs)

        self._replace(module, watched)

    def returning(self, module: nn.Module, note: Callable[[Tensor], None]) -> None:
        """Notes the states that a module returns."""
        forward = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            note(output if isinstance(output, Tensor) else output[0])
            return output

        self._replace(module, watched)

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        attributes = vars(module)
        self._replaced.append((attributes, attributes.get("forward")))
        attributes["forward"] = forward

    def end(self) -> None:
        """Gives all modules their own `forward` back."""
        for attributes, own in reversed(self._replaced):
            if own is None:
                del attributes["forward"]
            else:
                attributes["forward"] = own
        self._replaced.clear()
