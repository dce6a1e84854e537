"""The real model: as d3 loads it, and as transformers loads it. Both in float32.

Each module that uses a fixture of this file loads its own model. `make real` gives each module to
one process, so keep together what uses the same model.
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

_SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_real_model.py"


@pytest.fixture(scope="session")
def real_path() -> Path:
    """The GGUF file. Without it, the test is skipped."""
    path: Path = runpy.run_path(str(_SCRIPT))["model_path"]()
    if not path.exists():
        pytest.skip("the real model is not on this machine: run make real")
    return path


@pytest.fixture(scope="module")
def real(real_path: Path) -> LoadedModel:
    """The model as d3 runs it."""
    return load_model(str(real_path), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def plain(real_path: Path) -> Any:
    """The model as transformers itself loads the file."""
    return _transformers_model(real_path, "sdpa")


@pytest.fixture(scope="module")
def reference(real_path: Path) -> Reference:
    """Slow, obvious D³ on the model as transformers loads it."""
    model = _transformers_model(real_path, "eager")
    return Reference(model, model.model.layers, "self_attn", "mlp")


def _transformers_model(path: Path, attention: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation=attention
    ).eval()


def encode(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """A question as token ids, by the model's own chat template."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
