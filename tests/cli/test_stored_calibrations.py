"""What d3 generate and d3 models do with a stored calibration."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from d3cli.base.settings import BUILTIN, state_dir
from d3cli.cli.calibrate.stored import describe
from d3cli.depth import calibration_store
from d3cli.depth.calibration_file import file_of
from d3cli.depth.calibration_record import Entry
from d3cli.depth.schedule import DepthSchedule
from d3cli.files.names import model_identity
from d3cli.model.load import load_model
from tests.conftest import D3, hub_repository
from tests.copies import change_a_tensor, key_of, stranger
from tests.records import FOUND, KEY, SCHEDULE

TAIL = ("--max-tokens", "2", "--dtype", "float32")


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    return stranger(tmp_path / "fox")


class TestGenerate:
    def source(self, d3: D3, *arguments: str | Path) -> tuple[str, list[str]]:
        """Where the schedule came from, and the notes on it."""
        result = d3("generate", *arguments, "Hi.", "--json", *TAIL)
        assert result.code == 0, result.err
        notes = [line for line in result.err.splitlines() if line.startswith("depth: ")]
        return json.loads(result.out)["schedule"]["source"], notes

    def test_auto_uses_the_calibration_and_says_what_it_costs(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        result = d3("generate", fox, "Hi.", "--json", *TAIL)
        expected = SCHEDULE.to_json() | {"source": "calibration"}
        assert json.loads(result.out)["schedule"] == expected
        (note,) = [line for line in result.err.splitlines() if line.startswith("depth: ")]
        assert note == (
            "depth: calibrated: +0.80% perplexity (1% was allowed), alpha 0.98 from token 8, "
            "down to 13 of 16 layers"
        )

    def test_it_wins_over_the_schedule_that_ships_with_the_model(self, d3: D3) -> None:
        assert self.source(d3) == ("shipped", [])
        calibration_store.save(key_of(BUILTIN), FOUND)
        assert self.source(d3)[0] == "calibration"
        model = load_model(dtype="float32")
        assert model.origin.schedule == SCHEDULE
        assert model.origin.calibration == FOUND
        assert model.origin.builtin
        assert model.origin.key == key_of(BUILTIN)

    def test_flags_override_its_fields(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        result = d3("generate", fox, "Hi.", "--json", "--alpha", "0.9", *TAIL)
        schedule = json.loads(result.out)["schedule"]
        assert schedule == replace(SCHEDULE, alpha=0.9).to_json() | {"source": "flags"}

    def test_a_changed_weight_makes_it_stale(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        change_a_tensor(fox, lambda tensor: tensor * 1.01)
        source, (stale,) = self.source(d3, fox)
        assert source == "default"
        assert "weights or config changed" in stale
        assert f"run: d3 calibrate {fox} --dtype float32" in stale
        assert "full depth is used instead" in stale

    def test_a_changed_config_makes_it_stale(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        config = json.loads((fox / "config.json").read_text())
        (fox / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
        source, (stale,) = self.source(d3, fox)
        assert (source, "weights or config changed" in stale) == ("default", True)

    def test_a_new_revision_makes_it_stale(self, d3: D3) -> None:
        with hub_repository("someone/tiny-fox") as snapshot:
            calibration_store.save(key_of("someone/tiny-fox"), FOUND)
            snapshot.rename(snapshot.with_name("2" * 40))
            (snapshot.parent.parent / "refs" / "main").write_text("2" * 40)
            source, (stale,) = self.source(d3, "someone/tiny-fox")
        assert source == "default"
        assert "the model is now at 222222222222" in stale

    def test_another_dtype_has_none(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox, dtype="bfloat16"), FOUND)
        source, (stale,) = self.source(d3, fox)
        assert source == "default"
        assert "made in bfloat16, and the model now runs in float32" in stale

    def test_one_that_does_not_fit_the_model_is_not_used(self, d3: D3, fox: Path) -> None:
        other = DepthSchedule(8, 0.98, 8, 2, 2, ("3", "4"))
        calibration_store.save(key_of(fox), replace(FOUND, schedule=other))
        source, (stale,) = self.source(d3, fox)
        assert source == "default"
        assert "for 8 layers" in stale

    @pytest.mark.parametrize(
        ("text", "problem", "remedy"),
        [
            ("{", "is damaged", "move it away, or run: d3 calibrate remove demo"),
            ('{"schema": 5}', "was written by a newer d3", "update d3"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_a_note(
        self, d3: D3, text: str, problem: str, remedy: str
    ) -> None:
        path = calibration_store.save(key_of(BUILTIN), FOUND)
        path.write_text(text)
        source, (note,) = self.source(d3)
        assert source == "shipped"
        assert problem in note
        assert remedy in note
        assert path.read_text() == text

    @pytest.mark.parametrize("form", [("bfloat16", "int9"), ("bfloat17", "int8")])
    def test_a_chosen_form_that_this_d3_does_not_know_is_a_note(
        self, d3: D3, fox: Path, form: tuple[str, str]
    ) -> None:
        calibration_store.save(key_of(fox, *form), FOUND, chosen=True)
        source, (note,) = self.source(d3, fox)
        assert source == "default"
        assert (
            f"it was made in {' with '.join(form)} weights, and the model now runs in float32"
            in note
        )
        loaded = d3("generate", fox, "Hi.", "--max-tokens", "2")
        assert loaded.code == 0 and "as calibrated" not in loaded.err

    def test_full_depth_has_no_use_for_one(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND).write_text("{")
        assert self.source(d3, "--alpha", "off", fox) == ("off", [])

    def test_without_one_the_command_that_makes_one_is_named(self, d3: D3, fox: Path) -> None:
        source, (note,) = self.source(d3, fox)
        assert source == "default"
        assert "not calibrated" in note
        assert f"d3 calibrate {fox} --dtype float32 may find something faster" in note

    def test_without_one_an_alpha_takes_its_order_from_the_prompt(self, d3: D3, fox: Path) -> None:
        prompt = "Tell me a story about a fox and an owl who share a den in the wood."
        arguments = ("generate", fox, prompt, "--json", "--alpha", "0.9", *TAIL)
        result = d3(*arguments)
        schedule = json.loads(result.out)["schedule"]
        assert schedule["source"] == "prompt"
        assert sorted(map(int, schedule["skip_order"])) == list(range(4, 12))
        assert (
            "ordered by the prompt; nobody has measured what it costs: d3 calibrate" in result.err
        )
        assert json.loads(d3(*arguments).out)["schedule"] == schedule
        parts = json.loads(d3(*arguments, "--units", "sublayer").out)["schedule"]
        assert {name.partition(".")[2] for name in parts["skip_order"]} == {"attn", "mlp"}
        assert len(parts["weights"]) == 16

    def test_without_one_an_alpha_drops_bits_of_nested_weights(self, d3: D3, fox: Path) -> None:
        prompt = "Tell me a story about a fox and its friends in the quiet forest at night."
        long = ("--dtype", "bfloat16", "--max-tokens", "12", "--alpha", "0.8", "--json")
        result = d3("generate", fox, prompt, *long)
        assert f"model: {fox}, nested for --alpha" in result.err
        found = json.loads(result.out)
        assert {unit.split(".")[-1] for unit in found["schedule"]["skip_order"]} == {"lo"}
        assert found["schedule"]["source"] == "prompt"
        stats = found["stats"]
        assert 4 < stats["min_bits"] < stats["bits"] < stats["full_bits"] < 10
        for options in (["--quantization", "none"], ["--units", "layer"]):
            result = d3("generate", fox, prompt, *long, *options)
            assert "nested" not in result.err
            order = json.loads(result.out)["schedule"]["skip_order"]
            assert order and all(unit.isdigit() for unit in order)
            assert json.loads(result.out)["stats"]["bits"] is None

    def test_with_one_an_alpha_keeps_the_weights_that_were_calibrated(
        self, d3: D3, fox: Path
    ) -> None:
        calibration_store.save(key_of(fox), FOUND)
        tail = ("--max-tokens", "2", "--alpha", "0.9")
        assert "nested" not in d3("generate", fox, "Hi.", *tail).err
        assert "nested" not in d3("generate", "Hi.", *tail).err  # it ships with a schedule
        change_a_tensor(fox, lambda tensor: tensor * 1.01)
        assert "nested for --alpha" in d3("generate", fox, "Hi.", *tail).err

    def test_a_prompt_too_short_to_order_the_layers_runs_at_full_depth(
        self, d3: D3, fox: Path
    ) -> None:
        result = d3("generate", fox, "--raw", "Hi.", "--json", "--alpha", "0.9", *TAIL)
        data = json.loads(result.out)
        assert (data["schedule"]["source"], data["schedule"]["skip_order"]) == ("prompt", [])
        assert "at least 16 are needed to order its layers: this reply runs at full depth" in (
            result.err
        )

    def test_an_alias_and_its_hub_id_share_a_calibration(self, d3: D3) -> None:
        (state_dir() / "config.toml").write_text('[aliases]\nfoxy = "someone/tiny-fox"\n')
        with hub_repository("someone/tiny-fox"):
            names = ("foxy", "someone/tiny-fox")
            keys = {key_of(name) for name in names}
            assert len(keys) == 1
            calibration_store.save(*keys, FOUND)
            for name in names:
                data = json.loads(d3("generate", name, "Hi.", "--json", *TAIL).out)
                assert data["schedule"]["source"] == "calibration"
        assert {model_identity(name) for name in names} == {"someone/tiny-fox"}


class TestModelsCommand:
    def row(self, d3: D3, name: str) -> list[str]:
        result = d3("models")
        assert result.code == 0, result.err
        (row,) = [line for line in result.out.splitlines() if name in line.split("\t")]
        return row.split("\t")

    def test_a_calibrated_model_shows_its_drop_and_ratio(self, d3: D3) -> None:
        assert self.row(d3, "demo")[4] == ""
        calibration_store.save(key_of(BUILTIN), FOUND)
        assert self.row(d3, "demo")[4] == "+0.80%, 1.21×, alpha 0.98 (float32)"
        with hub_repository("someone/tiny-fox"):
            calibration_store.save(key_of("someone/tiny-fox", quantization="bnb-4bit"), FOUND)
            assert self.row(d3, "someone/tiny-fox")[4].endswith("(float32 with bnb-4bit weights)")

    def test_a_calibrated_directory_has_a_row(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        calibration_store.save(
            key_of(fox, dtype="bfloat16"), replace(FOUND, schedule=DepthSchedule(16))
        )
        expected = "+0.80%, 1.21×, alpha 0.98 (float32); +0.80%, 1.21×, alpha 1 (bfloat16)"
        assert self.row(d3, str(fox))[4] == expected
        (fox / "config.json").write_text("{}")
        assert self.row(d3, str(fox))[4].count("stale") == 2

    def test_json_holds_them_whole(self, d3: D3, fox: Path) -> None:
        calibration_store.save(key_of(fox), FOUND)
        (item,) = json.loads(d3("models", "--json").out)["calibrations"]
        assert item["model"] == str(fox)
        assert item["problem"] is None
        assert item["dtype"] == "float32"
        assert item.items() >= FOUND.to_json().items()
        (fox / "config.json").unlink()
        (item,) = json.loads(d3("models", "--json").out)["calibrations"]
        assert "config.json" in item["problem"]

    def test_a_damaged_file_stands_beside_its_model(self, d3: D3) -> None:
        calibration_store.save(key_of(BUILTIN), FOUND).write_text("{")
        calibration_store.save(KEY, FOUND).write_text("\x1b[31m")
        assert self.row(d3, "demo")[4] == "unusable"
        assert "is damaged" in self.row(d3, "demo")[5]
        assert "is damaged" in self.row(d3, file_of(KEY.model).name)[5]
        items = json.loads(d3("models", "--json").out)["calibrations"]
        assert all("is damaged" in item["problem"] for item in items)
        assert len(items) == 2

    def test_hostile_texts_in_a_file_stay_inert(self, d3: D3) -> None:
        calibration_store.save(replace(KEY, model="a\x1b[2J", dtype="\u202efp"), FOUND)
        result = d3("models")
        assert result.code == 0
        assert "\x1b" not in result.out
        assert "\u202e" not in result.out
        assert "a␛[2J" in result.out

    def test_a_state_directory_that_cannot_be_breaks_nothing(self, d3: D3) -> None:
        (state_dir() / "calibrations").write_text("a file")
        assert d3("models").code == 0
        assert json.loads(d3("models", "--json").out)["calibrations"] == []


def test_a_calibration_in_full_says_all_that_was_measured() -> None:
    rows = dict(describe(Entry(KEY, FOUND), "it is old"))
    assert rows["model"] == "someone/fox"
    assert rows["not used"] == "it is old"
    assert rows["skip order"] == "9 7 5"
    assert rows["measured"].startswith("+0.80% on 60 unseen documents; at least +0.30%")
    assert rows["units"] == "layers"
