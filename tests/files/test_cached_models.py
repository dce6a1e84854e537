"""The list of the hub's cache has a line for each model, also where one cannot be read."""

from functools import partial
from pathlib import Path

import huggingface_hub
import pytest

from d3cli.files import cached_models as module


def test_a_model_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("closed", "open"):
        place = tmp_path / f"models--someone--{name}" / "snapshots" / ("0" * 40)
        place.mkdir(parents=True)
        (place / "config.json").write_text('{"model_type": "llama"}')
        (place / "model.safetensors").touch()
    scan = partial(huggingface_hub.scan_cache_dir, tmp_path)
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", scan)

    def refuse_one(snapshot: Path) -> bool:
        if "closed" in str(snapshot):
            raise PermissionError(13, "Permission denied")
        return False

    monkeypatch.setattr(module, "has_only_gguf", refuse_one)
    found = [(model.hub_id, model.problem) for model in module.cached_models()]
    assert found == [
        ("someone/closed", "it cannot be read: Permission denied"),
        ("someone/open", ""),
    ]
