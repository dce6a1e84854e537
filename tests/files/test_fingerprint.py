"""Fingerprints tell a changed model from the same one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from d3cli.base.errors import ModelError
from d3cli.files.fingerprint import fingerprint
from tests.conftest import BUILTIN_PATH
from tests.copies import change_a_tensor, stranger


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    return stranger(tmp_path / "fox")


class TestFingerprint:
    def test_a_copy_has_the_same(self, fox: Path) -> None:
        assert fingerprint(fox) == fingerprint(BUILTIN_PATH)

    @pytest.mark.parametrize(
        "change",
        [lambda t: t * 1.01, lambda t: t.half(), lambda t: t.reshape(t.shape[::-1])],
        ids=["values", "dtype", "shape"],
    )
    def test_another_tensor_changes_it(self, fox: Path, change: Callable[[Any], Any]) -> None:
        before = fingerprint(fox)
        change_a_tensor(fox, change)
        assert fingerprint(fox) != before

    def test_another_name_changes_it(self, fox: Path) -> None:
        before = fingerprint(fox)
        data = (fox / "model.safetensors").read_bytes()
        (fox / "model.safetensors").write_bytes(data.replace(b"layers.3.mlp", b"layers.3.mlq"))
        assert fingerprint(fox) != before

    def test_another_config_changes_it_but_no_other_file(self, fox: Path) -> None:
        before = fingerprint(fox)
        (fox / "generation_config.json").write_text("{}")
        (fox / "tokenizer_config.json").write_text("{}")
        assert fingerprint(fox) == before
        (fox / "config.json").write_text((fox / "config.json").read_text() + " ")
        assert fingerprint(fox) != before

    def test_how_tensors_are_spread_over_files_does_not_matter(self, fox: Path) -> None:
        before = fingerprint(fox)
        tensors = load_file(fox / "model.safetensors")
        (fox / "model.safetensors").unlink()
        weight_map = {}
        for number in (0, 1):
            names = sorted(tensors)[number::2]
            save_file({n: tensors[n] for n in names}, fox / f"m{number}.safetensors")
            weight_map |= dict.fromkeys(names, f"m{number}.safetensors")
        index = {"metadata": {}, "weight_map": weight_map}
        (fox / "model.safetensors.index.json").write_text(json.dumps(index))
        assert fingerprint(fox) == before

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff" * 8,
            b"\xff" * 7 + b"\x00",
            (10).to_bytes(8, "little") + b"{}",
            (2).to_bytes(8, "little") + b"[]",
            *(
                len(header).to_bytes(8, "little") + header
                for header in (
                    b'{"a": 3}',
                    b'{"a": {"data_offsets": [0, 9], "dtype": "F32", "shape": [2]}}',
                    b'{"a": {"data_offsets": [-4, 0], "dtype": "F32", "shape": [1]}}',
                    b'{"a": {"data_offsets": [0], "dtype": "F32", "shape": [1]}}',
                    b'{"a": {"data_offsets": ["0", 0], "dtype": "F32", "shape": [1]}}',
                    b'{"a": {"data_offsets": [0, 0]}}',
                    b"[" * 50_000,
                )
            ),
        ],
        ids=lambda data: str(data[:60]),
    )
    def test_a_damaged_header_is_an_error(self, fox: Path, data: bytes) -> None:
        (fox / "model.safetensors").write_bytes(data)
        with pytest.raises(ModelError, match="cannot be read"):
            fingerprint(fox)
