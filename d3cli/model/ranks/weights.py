"""Makes transformers split a model's weights over the ranks while it loads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from d3cli.kernels.plan import Form


@contextmanager
def splitting(form: Form) -> Iterator[dict[str, Any]]:
    """Yields transformers' options for a model in this form; it must be loaded inside the context.

    There are none if the model is not split.

    transformers splits a model for the kind of device that torch was built for. On a CPU, with a
    torch that was built for GPUs, it would fail, so inside the context torch names the CPU.
    """
    if form.ranks == 1:
        yield {}
        return
    from transformers.distributed import DistributedConfig  # only where it is needed

    device = torch.device(form.device.type)
    with patch.object(torch._C, "_get_accelerator", lambda *_: device):
        yield {"distributed_config": DistributedConfig(tp_size=form.ranks)}
