"""The demo model's optimizer: Muon for the layers' matrices, AdamW for all other parameters.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) makes each update of a matrix
nearly orthogonal. Its step is twice the size of an AdamW step (scaled after Liu et al.,
arXiv 2502.16982), and both parts share one learning rate. The workers divide the matrices and
add up their results.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(updates: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """Newton-Schulz: `updates` [N, A, B] with all singular values moved close to 1."""
    wide = updates if updates.shape[1] <= updates.shape[2] else updates.mT
    x = wide.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide is updates else x.mT).to(updates.dtype)


class Optimizer:
    """Steps all parameters of a model from their `.grad`; every worker holds the same state."""

    def __init__(
        self,
        model: nn.Module,
        weight_decay: float,
        dtype: torch.dtype,
        worker: int,
        workers: int,
    ) -> None:
        self.weight_decay, self.dtype = weight_decay, dtype
        self.worker, self.workers = worker, workers
        inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        chosen = set(map(id, inner))
        rest = [p for p in model.parameters() if id(p) not in chosen]
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)
        self.by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in inner:
            self.by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        self.momentum = {s: torch.zeros(len(p), *s) for s, p in self.by_shape.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        for shape, parameters in self.by_shape.items():
            gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
            momentum = self.momentum[shape].lerp_(gradients, 1 - MOMENTUM)
            ahead = gradients.lerp_(momentum, MOMENTUM)
            updates = torch.zeros_like(ahead)
            mine = slice(self.worker, None, self.workers)
            updates[mine] = orthogonal(ahead[mine], self.dtype)
            dist.all_reduce(updates)
            size = learning_rate * 0.4 * max(shape) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - learning_rate * self.weight_decay).sub_(update, alpha=size)

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "momentum": list(self.momentum.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        for buffer, stored in zip(self.momentum.values(), state["momentum"], strict=True):
            buffer.copy_(stored)
