"""One thread a test process: tiny tensors gain nothing from more, and a busy machine loses much."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the settings or the hub cache of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("D3_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("D3_HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
