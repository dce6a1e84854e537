"""`d3 models`: names, what is on disk, the default."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import JambaConfig

from d3cli.base.amounts import readable_size
from tests.conftest import BUILTIN_PATH, D3, check, hub_repository

SIZE = sum(file.stat().st_size for file in BUILTIN_PATH.iterdir())


@pytest.fixture
def config() -> Path:
    return Path(os.environ["D3_HOME"]) / "config.toml"


@pytest.fixture(autouse=True)
def _cache() -> Iterator[None]:
    with (
        hub_repository("someone/tiny-fox"),
        hub_repository("someone/half", without=("model.safetensors",)),
        hub_repository("someone/jamba") as jamba,
    ):
        JambaConfig().save_pretrained(jamba)
        yield


def test_an_unlisted_model_in_the_cache_is_said_to_run_at_full_depth_only(d3: D3) -> None:
    with hub_repository("someone/unproven") as snapshot:
        config = json.loads((snapshot / "config.json").read_text()) | {"model_type": "gemma"}
        (snapshot / "config.json").write_text(json.dumps(config))
        (row,) = (r for r in d3("models").out.splitlines() if "someone/unproven" in r)
    assert "runs at full depth only" in row


def test_a_pipe_gets_one_tab_separated_line_a_model(d3: D3) -> None:
    result = d3("models")
    assert result.code == 0
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert {len(row) for row in rows} == {6}
    assert rows[0][:2] == ["*", "demo"]
    by_model = {row[2]: row for row in rows}
    assert by_model["meta-llama/Meta-Llama-3-8B-Instruct"][1] == "llama-3-8b"
    assert by_model["someone/tiny-fox"][3:] == [readable_size(SIZE), "", ""]
    assert "lacks model.safetensors" in by_model["someone/half"][5]
    assert "recurrent state" in by_model["someone/jamba"][5]


def test_an_option_of_the_list_is_refused_before_a_subcommand(d3: D3) -> None:
    check(d3("models", "--json", "verify", "demo"), 2, "verify comes after options")
    assert d3("models", "default", "demo", "--debug").code == 0


def test_json_holds_the_same(d3: D3) -> None:
    data = json.loads(d3("models", "--json").out)
    assert data["default"] == "demo"
    assert len(data["aliases"]) >= 30
    cached = {model["model"]: model for model in data["cached"]}
    assert cached["someone/tiny-fox"]["problem"] is None
    assert cached["someone/tiny-fox"]["size_bytes"] == SIZE
    assert "incomplete" in cached["someone/half"]["problem"]


def test_the_default_is_set_and_used(d3: D3, config: Path) -> None:
    config.write_text("# mine\nmax_tokens = 3  # short\n[aliases]\n")
    result = d3("models", "default", "someone/tiny-fox")
    assert result.code == 0
    assert "# mine" in config.read_text()
    assert "# short" in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert "model: someone/tiny-fox" in d3("generate", "Hello.").err
    assert json.loads(d3("models", "--json").out)["default"] == "someone/tiny-fox"


def test_a_default_that_the_environment_overrides_is_said(
    d3: D3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D3_MODEL", "someone/tiny-fox")
    assert "D3_MODEL is set, so someone/tiny-fox still runs" in d3("models", "default", "demo").err


def test_a_link_to_the_config_file_stays_one(d3: D3, config: Path, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles.toml"
    target.write_text("# mine\n")
    config.symlink_to(target)
    assert d3("models", "default", "demo").code == 0
    assert config.is_symlink()
    assert target.read_text() == '# mine\nmodel = "demo"\n'


def test_no_home_at_all_is_told(d3: D3, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("d3cli.base.settings.Path.home", nowhere)
    for name in ("D3_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    check(d3("models"), 2, "this user has no home directory")
    check(d3("--nonsense"), 2, "No such option")


def test_a_directory_may_be_the_default(d3: D3) -> None:
    assert d3("models", "default", BUILTIN_PATH).code == 0
    assert d3("generate", "Hello.", "--max-tokens", "2").code == 0


def test_a_relative_directory_is_stored_absolute(
    d3: D3, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BUILTIN_PATH.parent)
    assert d3("models", "default", "./builtin").code == 0
    assert str(BUILTIN_PATH) in config.read_text()
    assert d3("models").out.startswith(f"*\t\t{BUILTIN_PATH}\t")


def test_one_damaged_repository_does_not_hide_the_others(d3: D3) -> None:
    with hub_repository("someone/damaged") as damaged:
        (damaged / "config.json").write_text("{")
        result = d3("models")
    assert result.code == 0
    assert "someone/tiny-fox" in result.out
    assert "cannot be read" in result.out


def test_an_unknown_default_is_refused_and_nothing_is_written(d3: D3, config: Path) -> None:
    result = d3("models", "default", "lama-3-8b")
    check(result, 2, 'no model or directory called "lama-3-8b"')
    assert "llama-3-8b" in result.err
    assert not config.exists()


def test_a_damaged_config_file_is_left_alone(d3: D3, config: Path) -> None:
    config.write_text("= broken")
    check(d3("models", "default", "demo"), 2, "cannot be read")
    assert config.read_text() == "= broken"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(d3: D3, config: Path) -> None:
    config.parent.chmod(0o500)
    check(d3("models", "default", "demo"), 1, "cannot be written")
    config.parent.chmod(0o700)


def test_what_takes_disk_comes_with_the_command_that_removes_it(
    d3: D3, config: Path, tmp_path: Path
) -> None:
    local = tmp_path / "my models" / "fox"
    shutil.copytree(BUILTIN_PATH, local)
    config.write_text(f'[aliases]\nmine = "{local}"\ngone = "/nowhere/x"\n')
    result = d3("models", "--disk")
    assert result.code == 0
    rows = {row[1]: row for row in (line.split("\t") for line in result.out.splitlines())}
    assert rows["someone/tiny-fox"] == [
        readable_size(SIZE),
        "someone/tiny-fox",
        "hf cache rm model/someone/tiny-fox",
    ]
    assert "someone/jamba" in rows  # also what d3 cannot run
    assert rows[str(local)][2] == f"rm -r '{local}'"
    assert "4 things take" in result.err
    data = json.loads(d3("models", "--disk", "--json").out)
    assert data["size_bytes"] == sum(use["size_bytes"] for use in data["disk"])
    assert {use["name"]: use["size_bytes"] for use in data["disk"]}[str(local)] == sum(
        file.stat().st_size for file in local.rglob("*") if file.is_file()
    )


def test_an_unfinished_download_takes_disk(d3: D3) -> None:
    with hub_repository("someone/begun") as snapshot:
        blobs = snapshot.parents[1] / "blobs"
        blobs.mkdir()
        (blobs / "0123.incomplete").write_bytes(bytes(5000))
        data = json.loads(d3("models", "--disk", "--json").out)
    [one] = [use for use in data["disk"] if use["name"] == "unfinished downloads"]
    assert (one["size_bytes"], one["remove"]) == (5000, "hf cache prune")


def test_the_disk_of_one_model(d3: D3, tmp_path: Path) -> None:
    shutil.copytree(BUILTIN_PATH, tmp_path / "fox")
    assert f"rm -r {tmp_path / 'fox'}" in d3("models", tmp_path / "fox", "--disk").out
    assert "hf cache rm model/someone/tiny-fox" in d3("models", "someone/tiny-fox", "--disk").out
    builtin = d3("models", "demo", "--disk")
    assert (builtin.code, builtin.out) == (0, "")
    assert "the built-in one, which is a part of d3" in builtin.err
    assert json.loads(d3("models", "demo", "--disk", "--json").out)["disk"] == []
    check(d3("models", "someone/nothing", "--disk"), 1, "is not on disk")


def test_a_broken_model_is_named_where_disk_is_listed(d3: D3, config: Path, tmp_path: Path) -> None:
    shutil.copytree(BUILTIN_PATH, tmp_path / "fox")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(9))
    result = d3("models", tmp_path, "--disk")
    assert result.code == 0
    assert f"rm -r {tmp_path / 'fox'}" in result.out
    assert str(broken) not in result.out
    (line,) = [line for line in result.err.splitlines() if str(broken) in line]
    problem = json.loads(d3("models", tmp_path, "--json").out)["models"]
    told = next(model["problem"] for model in problem if model["name"] == str(broken))
    assert told in line
    data = json.loads(d3("models", tmp_path, "--disk", "--json").out)
    assert data["unreadable"] == [{"name": str(broken), "problem": told}]
    config.write_text(f'[aliases]\nmine = "{broken}"\ngone = "/nowhere/x"\n')
    assert told in d3("models", "--disk").err
    (tmp_path / "alone").mkdir()
    broken.rename(tmp_path / "alone" / "broken.gguf")
    result = d3("models", tmp_path / "alone", "--disk")
    check(result, 1, "takes no disk")
    assert "broken.gguf is left out" in result.err


def test_the_list_says_what_the_cache_takes(d3: D3) -> None:
    assert "d3 models --disk says how to remove them" in d3("models").err
