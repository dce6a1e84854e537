"""A model in GGUF as a whole: split files, and the files that hold no model that d3 can run."""

from pathlib import Path
from typing import Any

import pytest
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from d3cli.base.errors import ModelError
from d3cli.depth.families import (
    CANNOT_SKIP,
    FAMILIES,
    GGUF_ARCHITECTURES,
    GGUF_CANNOT_SKIP,
    GGUF_NOT_READ,
)
from d3cli.files.fingerprint import gguf_fingerprint
from d3cli.files.gguf import GgufModel, read_gguf, read_kind
from tests.gguf_bytes import I32, U16, Gguf, f32, tiny, write_split


def tensors_of(model: GgufModel) -> dict[str, bytes]:
    """The bytes of each tensor, from the place that the header names."""
    return {
        name: tensor.path.read_bytes()[tensor.offset :][: tensor.nbytes]
        for name, tensor in model.tensors.items()
    }


class TestSplitFiles:
    @pytest.mark.parametrize("part", [0, 1, 2], ids="part {}".format)
    def test_any_part_stands_for_the_whole(self, tmp_path: Path, part: int) -> None:
        whole = read_gguf(tiny().write(tmp_path / "whole.gguf"))
        paths = write_split(tmp_path, "fox")
        model = read_gguf(paths[part])
        assert model.paths == tuple(paths)
        assert model.metadata["general.name"] == "Tiny Fox"
        assert tensors_of(model) == tensors_of(whole)
        assert model.nbytes == sum(path.stat().st_size for path in paths)
        assert model.types == whole.types == {"F32": 640, "Q8_0": 68}

    def test_the_first_part_may_hold_metadata_alone(self, tmp_path: Path) -> None:
        whole = tiny()
        whole.tensors.insert(0, whole.tensors.pop())
        first, second = write_split(tmp_path, "fox", parts=2, whole=whole)
        held = list(whole.tensors)
        split = {"split.count": (U16, 2), "split.tensors.count": (I32, 3)}
        Gguf({**whole.keys, **split, "split.no": (U16, 0)}).write(first)
        Gguf({**split, "split.no": (U16, 1)}, held).write(second)
        assert len(read_gguf(first).tensors) == 3
        assert read_kind(first) == "model"

    def test_missing_parts_are_named(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, "fox")
        paths[1].unlink()
        with pytest.raises(ModelError, match=r"lacks fox-00002-of-00003\.gguf, a part of") as got:
            read_gguf(paths[2])
        assert "copy the missing parts" in got.value.hint
        paths[0].unlink()
        with pytest.raises(ModelError, match=r"lacks fox-00001-of-00003\.gguf and 1 more"):
            read_gguf(paths[2])

    def test_a_part_under_another_name(self, tmp_path: Path) -> None:
        second = write_split(tmp_path, "fox")[1].rename(tmp_path / "sha256-abc")
        with pytest.raises(ModelError, match="is part 2 of 3 of a split model") as got:
            read_gguf(second)
        assert "-00002-of-00003.gguf" in got.value.hint

    def test_a_link_with_another_name_leads_to_the_parts(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, "fox")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "model.gguf").symlink_to(paths[0])
        assert read_gguf(tmp_path / "elsewhere" / "model.gguf").paths == tuple(paths)

    def test_links_of_the_hub_s_cache_keep_their_names(self, tmp_path: Path) -> None:
        for number, path in enumerate(write_split(tmp_path, "fox")):
            path.rename(tmp_path / f"blob{number}")
            path.symlink_to(tmp_path / f"blob{number}")
        model = read_gguf(tmp_path / "fox-00002-of-00003.gguf")
        assert model.paths[0].name == "fox-00001-of-00003.gguf"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"split.no": (U16, 0)}, "is not part 2 of 3 of this model: it says part 1 of 3"),
            ({"split.count": (U16, 4)}, "is not part 2 of 3 of this model: it says part 2 of 4"),
            ({"split.tensors.count": (I32, 9)}, "says part 2 of 3, and 9 tensors in all"),
            ({"split.no": "two"}, 'it says part "two" of 3'),
        ],
        ids=str,
    )
    def test_parts_that_disagree(self, tmp_path: Path, change: Any, message: str) -> None:
        paths = write_split(tmp_path, "fox")
        keys = {"split.no": (U16, 1), "split.count": (U16, 3), "split.tensors.count": (I32, 3)}
        Gguf(keys | change, [tiny().tensors[1]]).write(paths[1])
        with pytest.raises(ModelError) as got:
            read_gguf(paths[0])
        assert message in got.value.message
        assert paths[1].name in got.value.message

    def test_a_part_of_another_conversion(self, tmp_path: Path) -> None:
        paths = write_split(tmp_path, "fox")
        keys = {"split.no": (U16, 1), "split.count": (U16, 3), "split.tensors.count": (I32, 3)}
        Gguf(keys, [f32("token_embd.weight", 32)]).write(paths[1])
        with pytest.raises(ModelError, match=r'hold the tensor "token_embd\.weight" twice'):
            read_gguf(paths[0])
        Gguf(keys, [f32("a", 32), f32("b", 32)]).write(paths[1])
        with pytest.raises(ModelError, match="hold 4 tensors, but it says 3"):
            read_gguf(paths[0])

    @pytest.mark.parametrize("keys", [{"split.count": (U16, 65535)}, {"split.no": (U16, 9)}])
    def test_absurd_counts_of_parts(self, tmp_path: Path, keys: Any) -> None:
        file = tiny()
        file.keys |= {"split.count": (U16, 3), "split.no": (U16, 0)} | keys
        with pytest.raises(ModelError, match="claims to be part"):
            read_gguf(file.write(tmp_path / "fox-00001-of-00003.gguf"))

    def test_a_number_of_one_is_no_split(self, tmp_path: Path) -> None:
        file = tiny(split__count=1)
        assert len(read_gguf(file.write(tmp_path / "any")).tensors) == 3


def without_tensors() -> Gguf:
    file = tiny()
    file.tensors = []
    return file


OTHERS = {
    "an adapter": (tiny(general__type="adapter"), "holds only an adapter (LoRA)"),
    "a projector": (
        tiny(general__architecture="clip"),
        "holds only a multimodal projector, not a language model",
    ),
    "a projector by type": (tiny(general__type="mmproj"), "only a multimodal projector"),
    "an importance matrix": (tiny(general__type="imatrix"), "only an importance matrix"),
    "a vocabulary": (without_tensors(), "holds only a vocabulary"),
    "another type": (tiny(general__type="\x1b[0mx"), 'holds "\u241b[0mx", not a model'),
    "no architecture": (tiny(general__architecture=1), "names no architecture"),
    "not proven": (tiny(general__architecture="falcon"), 'architecture "falcon", which d3 does'),
    "not read": (tiny(general__architecture="olmo2"), "which transformers cannot read from GGUF"),
    "recurrent": (tiny(general__architecture="mamba"), "it is recurrent"),
    "hybrid": (tiny(general__architecture="nemotron_h"), "keep a recurrent state"),
    "hybrid too": (tiny(general__architecture="falcon-h1"), "keep a recurrent state"),
    "hybrid, under another name": (tiny(general__architecture="qwen35"), "a recurrent state"),
    "shared keys": (tiny(general__architecture="gemma3n"), "keys and values of earlier ones"),
    "hostile": (tiny(general__architecture="\u202e" * 999), "which d3 does not support"),
}


class TestOtherFiles:
    @pytest.mark.parametrize("name", OTHERS)
    def test_each_has_one_clear_line(self, tmp_path: Path, name: str) -> None:
        file, message = OTHERS[name]
        with pytest.raises(ModelError) as got:
            read_gguf(file.write(tmp_path / "x.gguf"))
        assert message in got.value.message
        assert str(tmp_path / "x.gguf") in got.value.message
        assert got.value.message.isprintable()
        assert len(got.value.message) < 500
        assert got.value.hint


class TestArchitectures:
    def test_all_are_proven_families_that_transformers_reads(self) -> None:
        for name, model_type in GGUF_ARCHITECTURES.items():
            assert model_type in FAMILIES
            assert {name, model_type} & set(GGUF_SUPPORTED_ARCHITECTURES)

    def test_llama_with_experts_is_mixtral(self, tmp_path: Path) -> None:
        assert read_gguf(tiny().write(tmp_path / "x")).model_type == "llama"
        mixture = tiny(llama__expert_count=8).write(tmp_path / "x")
        assert read_gguf(mixture).model_type == "mixtral"

    def test_the_other_proven_families_are_named(self) -> None:
        for name, model_type in GGUF_NOT_READ.items():
            assert model_type in FAMILIES
            assert name not in GGUF_ARCHITECTURES
        for name, model_type in GGUF_CANNOT_SKIP.items():
            assert name not in CANNOT_SKIP
            assert model_type in CANNOT_SKIP


class TestFingerprint:
    def test_a_name_a_place_and_a_split_do_not_matter(self, tmp_path: Path) -> None:
        known = gguf_fingerprint(read_gguf(tiny().write(tmp_path / "a.gguf")))
        renamed = tiny(general__name="Other", tokenizer__ggml__add_bos_token=True)
        assert gguf_fingerprint(read_gguf(renamed.write(tmp_path / "b"))) == known
        assert gguf_fingerprint(read_gguf(write_split(tmp_path, "fox")[2])) == known

    @pytest.mark.parametrize("what", ["weights", "config", "architecture", "type", "name"])
    def test_another_model_has_another(self, tmp_path: Path, what: str) -> None:
        known = gguf_fingerprint(read_gguf(tiny().write(tmp_path / "a.gguf")))
        other = tiny()
        match what:
            case "weights":
                other.tensors[1] = f32("blk.0.attn_norm.weight", 32, seed=1)
            case "config":
                other = tiny(llama__rope__freq_base=1e6)
            case "architecture":
                other = tiny(general__architecture="qwen2")
            case "type":
                other.tensors[1] = f32("blk.0.attn_norm.weight", 16, 2)
            case "name":
                other.tensors[1] = f32("blk.0.ffn_norm.weight", 32)
        assert gguf_fingerprint(read_gguf(other.write(tmp_path / "b.gguf"))) != known
