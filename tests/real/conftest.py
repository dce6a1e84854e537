"""The real model: as d3 loads it, and as transformers loads it. Both in float32.

Each process that uses a fixture of this file loads its own models, and `make real` has two
processes: one for what shares `long_replies`, one for the rest. They take about as long.
"""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from d3cli.model.load import load_model
from d3cli.model.model import LoadedModel
from tests.reference import Reference

long_replies = [pytest.mark.real, pytest.mark.xdist_group("long replies")]
the_rest = [pytest.mark.real, pytest.mark.xdist_group("the rest")]
_SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_real_model.py"


@pytest.fixture(scope="session")
def real_path() -> Path:
    """The GGUF file. Without it, the test is skipped."""
    path: Path = runpy.run_path(str(_SCRIPT))["model_path"]()
    if not path.exists():
        pytest.skip("the real model is not on this machine: run make real")
    return path


@pytest.fixture(scope="session")
def real(real_path: Path) -> LoadedModel:
    """The model as d3 runs it."""
    return load_model(str(real_path), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def loaded(real_path: Path) -> Any:
    """The model as transformers itself loads the file, which takes long."""
    return AutoModelForCausalLM.from_pretrained(
        real_path.parent, gguf_file=real_path.name, dtype=torch.float32
    ).eval()


@pytest.fixture
def plain(loaded: Any) -> Any:
    """transformers' model with its usual attention."""
    loaded.set_attn_implementation("sdpa")
    return loaded


@pytest.fixture
def reference(loaded: Any) -> Reference:
    """Slow, obvious D³ on transformers' model."""
    loaded.set_attn_implementation("eager")
    return Reference(loaded, loaded.model.layers, "self_attn", "mlp")


def encode(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """A question as token ids, by the model's own chat template."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
