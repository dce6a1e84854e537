"""One token's attention with grouped queries is as exact as transformers' own, in every family."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from d3cli.kernels.grouped_attention import GROUPED, grouped_attention
from tests.families import CONFIGS, tiny


class Module(nn.Module):
    """The attributes of an attention module that transformers' function reads."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


def random_case(
    heads: int, kv_heads: int, length: int, tokens: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    query = torch.randn(1, heads, tokens, 16, dtype=torch.float64)
    buffer = torch.randn(2, 1, kv_heads, 2 * length, 16, dtype=torch.float64)
    return query, buffer[0][:, :, :length], buffer[1][:, :, :length]


def exact_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Softmax of products, head by head, ``[B, 1, heads, head_dim]``."""
    sharing = query.shape[1] // key.shape[1]
    rows = []
    for head in range(query.shape[1]):
        weights = (query[:, head] @ key[:, head // sharing].mT * scaling).softmax(-1)
        rows.append(weights @ value[:, head // sharing])
    return torch.stack(rows, dim=2)


HEADS = [(8, 8), (8, 2), (8, 1), (6, 3)]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("length", [1, 5, 70])
def test_it_is_the_definition(heads: tuple[int, int], length: int) -> None:
    torch.manual_seed(length)
    case = random_case(*heads, length)
    expected = exact_attention(*case, scaling=0.3)
    found, weights = grouped_attention(
        Module(heads[0] // heads[1]), *(part.float() for part in case), None, scaling=0.3
    )
    assert weights is None
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, atol=1e-6)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_in_bfloat16_it_is_as_exact_as_what_it_replaces(heads: tuple[int, int]) -> None:
    """A thousand random inputs against float64."""
    torch.manual_seed(0)
    module = Module(heads[0] // heads[1])
    own = theirs = 0.0
    for _ in range(1000):
        case = [part.bfloat16() for part in random_case(*heads, 40)]
        exact = exact_attention(*(part.double() for part in case), scaling=0.25)
        found, _ = grouped_attention(module, *case, None, scaling=0.25)
        plain, _ = sdpa_attention_forward(module, *case, None, scaling=0.25)
        own += float((found.double() - exact).square().mean())
        theirs += float((plain.double() - exact).square().mean())
    assert 0 < own**0.5 <= 1.1 * theirs**0.5


@pytest.mark.parametrize("case", ["several tokens", "a mask"])
def test_everything_else_is_transformers_own(case: str) -> None:
    torch.manual_seed(0)
    tokens = 4 if case == "several tokens" else 1
    parts = [part.float() for part in random_case(8, 2, 9, tokens)]
    mask = torch.rand(1, 1, 1, 9) > 0.4 if case == "a mask" else None
    arguments: dict[str, Any] = {"scaling": 0.25, "dropout": 0.0}
    found, _ = grouped_attention(Module(4), *parts, mask, **arguments)
    expected, _ = sdpa_attention_forward(Module(4), *parts, mask, **arguments)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_uses_it(name: str) -> None:
    used = tiny(name).gated.causal_lm.config._attn_implementation
    assert used == ("eager" if name.startswith("gemma2") else GROUPED)
    assert tiny(name).plain.config._attn_implementation != GROUPED
