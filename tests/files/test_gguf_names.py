"""GGUF files are found by path, in directories and in the hub's cache; other files are named."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from d3cli.base.errors import D3Error, ModelError, UnknownModelError
from d3cli.base.settings import names_a_model, state_dir
from d3cli.depth.calibration_store import find, save
from d3cli.files.cached_models import cached_models
from d3cli.files.names import find_local, find_model, find_on_disk, model_identity
from tests.conftest import D3, check
from tests.copies import key_of, stranger
from tests.gguf_bytes import tiny, write_split
from tests.records import FOUND


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    return tiny().write(tmp_path / "fox.Q8_0.gguf")


class TestPaths:
    def test_every_way_to_write_a_file_is_the_same(
        self, fox: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(fox.parent)
        monkeypatch.setenv("HOME", str(fox.parent))
        (fox.parent / "link.gguf").symlink_to(fox)
        (fox.parent / "inner").mkdir()
        (state_dir() / "config.toml").write_text(f'[aliases]\nfoxy = "{fox}"\nhome = "~"\n')
        for name in (fox.name, f"./{fox.name}", f"~/{fox.name}", "inner/../" + fox.name):
            assert find_model(name).identity == model_identity(name) == str(fox)
        for name in ("link.gguf", "foxy"):
            assert find_model(name).identity == model_identity(name) == str(fox)
        assert find_model("foxy").gguf is not None

    def test_a_blob_without_an_ending(self, fox: Path) -> None:
        blob = fox.rename(fox.parent / f"sha256-{'0' * 64}")
        files = find_model(str(blob))
        assert (files.path, files.identity, files.revision) == (blob, str(blob), None)
        assert not files.is_known

    def test_a_split_model_has_one_identity(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, "fox")
        for path in (*paths, tmp_path):
            assert find_model(str(path)).identity == model_identity(str(path)) == str(paths[0])

    @pytest.mark.parametrize("name", ["gone.gguf", "./gone.gguf", "gone/fox.gguf", "~/gone.GGUF"])
    def test_a_file_that_is_not_there(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert names_a_model(name)
        with pytest.raises(UnknownModelError, match=r"there is no (file|directory)") as got:
            find_local(name)
        assert got.value.hint

    def test_a_name_that_is_almost_right(self, fox: Path) -> None:
        with pytest.raises(UnknownModelError) as got:
            find_local(str(fox.with_name("fox.Q8.gguf")))
        assert got.value.hint == f"did you mean {fox}?"

    def test_a_link_to_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").symlink_to(tmp_path / "gone")
        with pytest.raises(UnknownModelError, match=r"x\.gguf is a broken link"):
            find_local(str(tmp_path / "x.gguf"))

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.gguf")
        with pytest.raises(UnknownModelError, match="not a regular file"):
            find_local(str(tmp_path / "x.gguf"))


class TestDirectories:
    def test_one_file_runs(self, fox: Path) -> None:
        (fox.parent / "README.md").write_text("# Fox")
        (fox.parent / "config.json").write_text("{}")  # of a repository with several formats
        files = find_model(str(fox.parent))
        assert files.path == fox
        assert model_identity(str(fox.parent)) == str(fox)

    def test_several_are_named(self, fox: Path) -> None:
        for number in range(5):
            tiny().write(fox.parent / f"fox.Q{number}_0.gguf")
        with pytest.raises(ModelError, match="holds 6 models in GGUF") as got:
            find_local(str(fox.parent))
        assert "fox.Q0_0.gguf, fox.Q1_0.gguf" in got.value.message
        assert got.value.message.endswith("and 2 more")
        assert got.value.exit_code == 2
        assert str(fox.parent / "fox.Q0_0.gguf") in got.value.hint

    def test_ollamas_directory_leads_to_ollamas_file(self, fox: Path) -> None:
        blobs = fox.parent / "models" / "blobs"
        blobs.mkdir(parents=True)
        fox.rename(blobs / f"sha256-{'0' * 64}")
        with pytest.raises(ModelError) as got:
            find_local(str(blobs.parent))
        assert "ollama show --modelfile" in got.value.hint
        assert find_model(str(blobs)).gguf is not None

    @pytest.mark.parametrize("name", ["smollm2:135m", "user/llama3.2:1b-instruct-q4_K_M"])
    def test_ollamas_names_lead_to_ollamas_file(self, name: str) -> None:
        with pytest.raises(UnknownModelError) as got:
            find_local(name)
        assert f"ollama show --modelfile {name}" in got.value.hint

    def test_a_split_model_counts_once(self, fox: Path) -> None:
        write_split(fox.parent, "vixen")
        with pytest.raises(ModelError, match="holds 2 models in GGUF"):
            find_local(str(fox.parent))

    def test_files_that_belong_to_a_model_do_not_count(self, fox: Path) -> None:
        tiny(general__architecture="clip").write(fox.parent / "mmproj-F16.gguf")
        tiny(general__architecture="clip").write(fox.parent / "a-projector.gguf")
        tiny(general__type="adapter").write(fox.parent / "lora.gguf")
        tiny(general__type="imatrix").write(fox.parent / "imatrix.gguf")
        assert find_model(str(fox.parent)).path == fox
        fox.unlink()
        for name in ("a-projector.gguf", "lora.gguf", "imatrix.gguf"):
            (fox.parent / name).unlink()
        with pytest.raises(ModelError, match="holds only a multimodal projector"):
            find_local(str(fox.parent))

    def test_a_damaged_file_beside_another_counts(self, fox: Path) -> None:
        (fox.parent / "other.gguf").write_bytes(b"GGUF")
        with pytest.raises(ModelError, match="holds 2 models"):
            find_local(str(fox.parent))

    def test_safetensors_come_first_with_a_note(self, tmp_path: Path) -> None:
        model = stranger(tmp_path / "both")
        tiny().write(model / "fox.gguf")
        files = find_model(str(model))
        assert files.gguf is None
        assert files.notes() == [
            "model.safetensors runs; to run fox.gguf, which lies beside, give its path"
        ]

    def test_missing_shards_are_not_replaced_by_a_gguf_file(self, tmp_path: Path) -> None:
        model = stranger(tmp_path / "both")
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(
            '{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}'
        )
        tiny().write(model / "fox.gguf")
        with pytest.raises(ModelError, match="lacks model-00001-of-00002"):
            find_local(str(model))

    def test_the_directory_above(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        fox = tiny().write(tmp_path / "a" / "b" / "fox.gguf")
        with pytest.raises(ModelError, match="no GGUF file") as got:
            find_local(str(tmp_path / "a"))
        assert got.value.hint == f"{fox.parent} holds fox.gguf: give that file"


OTHER_FORMATS = {
    "empty": (b"", "it is empty"),
    "a web page": (b"\n<!DOCTYPE html><html>", "it is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "safetensors": (b"\x60\0\0\0\0\0\0\0" + b'{"a": {}}', "it is a safetensors file"),
    "ggml": (b"lmgg\0\0\0\0", "it is in GGML, a format that came before GGUF"),
    "ggjt": (b"tjgg\3\0\0\0", "it is in GGJT, a format that came before GGUF"),
    "a pickle": (b"\x80\x02}q\0", "it is a pickle"),
    "a checkpoint": (b"PK\x03\x04", "perhaps a PyTorch checkpoint"),
    "gzip": (b"\x1f\x8b\x08", "compressed by gzip"),
    "noise": (b"\0\1\2\3\x1b[2J", "it begins with b'"),
}


class TestOtherFormats:
    @pytest.mark.parametrize("name", OTHER_FORMATS)
    @pytest.mark.parametrize("ending", [".gguf", ".bin"])
    def test_each_is_named(self, tmp_path: Path, name: str, ending: str) -> None:
        data, message = OTHER_FORMATS[name]
        (tmp_path / f"x{ending}").write_bytes(data)
        with pytest.raises(UnknownModelError) as got:
            find_local(str(tmp_path / f"x{ending}"))
        if ending == ".gguf" or name != "noise":
            assert message in got.value.message
        assert got.value.message.isprintable()
        assert got.value.hint

    def test_a_safetensors_file_leads_to_its_directory(self, tmp_path: Path) -> None:
        model = stranger(tmp_path / "fox")
        with pytest.raises(UnknownModelError) as got:
            find_local(str(model / "model.safetensors"))
        assert got.value.hint == f"give its directory, {model}: it holds config.json"


class TestOneArgument:
    def test_what_is_a_model_and_what_a_prompt(
        self, fox: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(fox.parent)
        (fox.parent / "my fox").mkdir()
        tiny().write(fox.parent / "my fox" / "a fox.gguf")
        tiny().write(fox.parent / "sha256-abc")
        (fox.parent / "notes").write_text("GG")
        for name in (fox.name, "gone.gguf", "sha256-abc", "my fox", "my fox/a fox.gguf", "."):
            assert names_a_model(name), name
        for prompt in ("notes", "What is in gone.gguf", "GGUF", "", "x" * 5000, "a\0b"):
            assert not names_a_model(prompt), prompt

    def test_a_missing_file_is_no_prompt(self, d3: D3) -> None:
        check(d3("generate", "gone.gguf"), 2, "there is no file gone.gguf")


@pytest.fixture
def snapshot() -> Iterator[Path]:
    """A repository in the hub's cache that holds a GGUF file alone."""
    repository = Path(os.environ["HF_HUB_CACHE"]) / "models--someone--fox-GGUF"
    place = repository / "snapshots" / ("0" * 40)
    place.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "blobs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    tiny().write(repository / "blobs" / ("a" * 64))
    (place / "fox.Q8_0.gguf").symlink_to(f"../../blobs/{'a' * 64}")
    yield place
    for path in sorted(repository.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    repository.rmdir()


class TestTheHubsCache:
    def test_a_repository_of_one_file(self, snapshot: Path) -> None:
        files = find_on_disk("someone/fox-GGUF")
        assert files is not None
        assert (files.path, files.revision) == (snapshot / "fox.Q8_0.gguf", "0" * 40)
        assert files.identity == model_identity("someone/fox-GGUF") == "someone/fox-GGUF"
        [listed] = [model for model in cached_models() if model.hub_id == "someone/fox-GGUF"]
        assert listed.problem == ""

    def test_a_repository_of_several_files(self, snapshot: Path, d3: D3) -> None:
        (snapshot / "fox.F16.gguf").symlink_to(f"../../blobs/{'a' * 64}")
        with pytest.raises(ModelError, match=r"holds 2 models in GGUF: fox\.F16\.gguf, fox"):
            find_on_disk("someone/fox-GGUF")
        assert "holds 2 models in GGUF" in d3("models").out

    def test_a_safetensors_download_goes_on(self, snapshot: Path) -> None:
        (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"")
        assert find_on_disk("someone/fox-GGUF") is None


class TestCommands:
    def test_the_default_model(self, fox: Path, d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(fox.parent)
        assert d3("models", "default", f"./{fox.name}").code == 0
        config = state_dir() / "config.toml"
        assert f'model = "{fox}"' in config.read_text()
        assert stat.S_IMODE(config.stat().st_mode) == 0o600

    def test_what_is_in_a_directory(self, fox: Path, d3: D3) -> None:
        (fox.parent / "cut.gguf").write_bytes(b"GGUF")
        (fox.parent / "empty.gguf").touch()
        for name in ("config-only", "nothing", "deep/er", ".hidden"):
            (fox.parent / name).mkdir(parents=True)
        (fox.parent / "config-only" / "config.json").write_text("{}")
        tiny().write(fox.parent / "deep" / "er" / "deep.gguf")
        result = d3("models", fox.parent)
        assert "not searched: deep, nothing\n" in result.err
        rows = [line.split("\t") for line in result.out.splitlines()]
        assert [Path(row[0]).name for row in rows] == [
            "cut.gguf",
            fox.name,
            "empty.gguf",
            "config-only",
        ]
        assert rows[2][-1].endswith("it is empty")
        assert "lacks model.safetensors" in rows[3][-1]
        assert rows[0][0] == str(fox.parent / "cut.gguf")
        assert "ends within its header" in rows[0][-1]
        assert rows[1][:4] == [str(fox), "llama", "1", "GGUF F32, Q8_0"]
        assert d3("models", fox).out.splitlines()[0].split("\t") == rows[1]

    def test_verify_compares_with_the_name_that_ollama_gave(self, fox: Path, d3: D3) -> None:
        from hashlib import sha256

        name = f"sha256-{sha256(fox.read_bytes()).hexdigest()}"
        blob = fox.rename(fox.parent / name)
        assert d3("models", "verify", blob).out == f"{blob}: the file matches its checksum\n"
        data = blob.read_bytes()
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        check(d3("models", "verify", blob), 1, "its checksum differs")
        check(d3("models", "verify", tiny().write(fox)), 2, "has no checksum")


@pytest.mark.parametrize("kind", ["GGUF", "safetensors"])
def test_a_model_that_is_moved_keeps_its_calibration(tmp_path: Path, kind: str) -> None:
    old = tmp_path / "old.gguf"
    if kind == "GGUF":
        tiny().write(old)
    else:
        stranger(old)
    save(key_of(old), FOUND)
    moved = old.rename(tmp_path / "new.gguf")
    assert find(key_of(moved)) == FOUND
    assert find(key_of(moved, dtype="bfloat16")) is None
    if kind == "GGUF":
        tiny(llama__rope__freq_base=5.0).write(moved)
        assert find(key_of(moved)) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8(fox: Path) -> None:
    odd = fox.rename(fox.parent / os.fsdecode(b"f\xf6x.gguf"))
    with pytest.raises(ModelError, match="is not UTF-8"):
        find_local(str(odd))


def test_errors_are_of_d3_for_any_name() -> None:
    for name in ("\0.gguf", "x" * 5000 + ".gguf", "~nobody-here/x.gguf", "\udcff.gguf"):
        with pytest.raises(D3Error):
            find_local(name)
