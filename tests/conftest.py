"""One thread a test process: tiny tensors gain nothing from more, and a busy machine loses much."""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Before huggingface_hub is imported, which reads it once: no test sees its user's models.
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="d3-tests-hub-")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the settings of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("D3_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("D3_HOME", str(home))
