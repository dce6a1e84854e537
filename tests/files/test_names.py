"""One identity for each model, whichever name is used."""

from pathlib import Path

import pytest

from d3cli.base.errors import DownloadError
from d3cli.base.settings import BUILTIN, state_dir
from d3cli.files.names import find_model, model_identity
from tests.conftest import hub_repository
from tests.copies import stranger


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    return stranger(tmp_path / "fox")


class TestIdentity:
    def test_every_way_to_write_a_directory_is_the_same(
        self, fox: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(fox.parent)
        (fox.parent / "link").symlink_to(fox)
        (state_dir() / "config.toml").write_text(f'[aliases]\nfoxy = "{fox}/"\n')
        for name in ("fox", "./fox", "link", "../" + fox.parent.name + "/fox", "foxy"):
            assert find_model(name).identity == model_identity(name) == str(fox)
            assert find_model(name).revision is None

    def test_a_model_that_is_gone_still_has_one(self, tmp_path: Path) -> None:
        assert model_identity(str(tmp_path / "gone")) == str(tmp_path / "gone")
        assert model_identity("someone/gone") == "someone/gone"
        assert model_identity("llama-3-8b") == "meta-llama/Meta-Llama-3-8B-Instruct"
        assert model_identity(BUILTIN) == "demo"
        assert model_identity("") == ""

    def test_a_hub_models_revision_is_its_commit(self) -> None:
        with hub_repository("someone/tiny-fox"):
            assert find_model("someone/tiny-fox").revision == "0" * 40


@pytest.mark.parametrize("revision", [None, "v2", "0000000"])
def test_offline_another_commit_in_the_cache_is_named(revision: str | None) -> None:
    with hub_repository("someone/tiny-fox") as snapshot:
        (snapshot.parents[1] / "refs" / "main").unlink()  # as after a download by commit
        with pytest.raises(DownloadError, match="not complete in the local cache") as refused:
            find_model("someone/tiny-fox", offline=True, revision=revision)
        assert snapshot.name in refused.value.hint
        assert find_model("someone/tiny-fox", offline=True, revision=snapshot.name)
        (snapshot / "model.safetensors").unlink()
        with pytest.raises(DownloadError) as refused:
            find_model("someone/tiny-fox", offline=True, revision=revision)
        assert snapshot.name not in refused.value.hint
